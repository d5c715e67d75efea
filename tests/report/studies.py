"""Fabricated studies for the report's tests and benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.database.ingest import ingest
from harness.database.items import ItemScores, Outcomes
from harness.records.codec import decode
from harness.records.paths import Paths
from harness.records.trial import TrialConfig
from harness.report.data import StudyData
from harness.space import Float
from harness.study.family import Family, FamilyStage
from harness.study.spec import StageSpec, StudySpec
from tests.fabricate import FAMILIES, LEARNING_RATE, World, fabricate, study_spec, write_signed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Answers = NDArray[np.float64]

METHODS = ("full", "lora", "dora", "ia3", "prefix_tuning", "qlora")
RETENTION = ("none", "replay")


def twelve_families() -> dict[str, Family]:
    """Six methods, each without and with replay."""
    made = {}
    for method in METHODS:
        for retention in RETENTION:
            name = method if retention == "none" else f"{method}_replay"
            stage = FamilyStage(StageSpec(method=method, retention=retention), {"learning_rate": LEARNING_RATE}, 1.0)
            made[name] = Family(name, (stage,))
    return made


def large_spec(models: int = 2, tasks: int = 4, trials: int = 20, finalists: int = 3) -> StudySpec:
    """A study over twelve families; as it stands, 2,056 trials."""
    return StudySpec.model_validate(
        {
            "name": "large",
            "question": "Which of twelve ways to tune a small model learns most and forgets least?",
            "base_models": [f"tiny-{size}m" for size in (1, 4, 16)[:models]],
            "tasks": ["sentiment", "newfacts", "sorting", "instructions"][:tasks],
            "off_target": ["facts", "addition", "copying", "stories_perplexity"],
            "families": {
                name: {"method": family.stages[0].spec.method, "retention": family.stages[0].spec.retention}
                for name, family in twelve_families().items()
            },
            "budget": {"trials": trials, "steps": 60},
            "confirm": {"finalists": finalists, "seeds": 5},
        }
    )


def paths_in(folder: Path) -> Paths:
    """Where a test's records and reports lie."""
    return Paths(folder / "results", folder / "reports")


def write_large(folder: Path, spec: StudySpec) -> Paths:
    """Fabricate a study of twelve families and fill its database."""
    paths = paths_in(folder)
    fabricate(paths, spec, twelve_families())
    ingest(paths)
    return paths


def write_small(folder: Path, world: World | None = None) -> Paths:
    """Two tasks, three families, five seeds: the study `made_up`."""
    paths = paths_in(folder)
    fabricate(paths, study_spec(tasks=2, trials=4, seeds=5), world=world, items=40)
    ingest(paths)
    return paths


def write_walked(folder: Path) -> Paths:
    """The same with a fourth family, whose trials stay somewhere between base and tuned weights; all are confirmed."""
    paths = paths_in(folder)
    spec = study_spec(tasks=2, trials=4, seeds=5)
    four = {name: {"method": "full"} for name in (*spec.families, "full_between")}
    spec = StudySpec.model_validate(
        spec.model_dump(mode="json") | {"families": four, "confirm": {"finalists": 4, "seeds": 5}}
    )
    space = {"learning_rate": LEARNING_RATE, "tuned_weight": Float(0.0, 1.0, default=0.5)}
    between = FamilyStage(StageSpec(method="full", retention="interpolation"), space, 1.0)
    fabricate(paths, spec, FAMILIES | {"full_between": Family("full_between", (between,))})
    ingest(paths)
    return paths


def failing_world() -> World:
    """Where every training diverges."""
    return World(best=dict.fromkeys(("full", "lora", "full_replay"), -9.0))


def keep_members(paths: Paths, study: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drop members from a study, as if it had stopped before them, and rebuild the database."""
    path = paths.study(study).members
    lines = [line for line in path.read_text().splitlines() if wanted(json.loads(line))]
    path.write_text("".join(f"{line}\n" for line in lines))
    ingest(paths)


def change_records(paths: Paths, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit every record's JSON and rebuild the database; a record whose configuration changed gets that one's key."""
    keys: dict[str, str] = {}
    for path in sorted(paths.trials.glob("*/*/record.json")):
        record = json.loads(path.read_text())
        change(record)
        path.unlink()
        keys[path.parent.name] = decode(TrialConfig, record["config"]).key
        write_signed(paths.record(keys[path.parent.name]), record)
    for study in paths.started():
        members = [json.loads(line) for line in study.members.read_text().splitlines()]
        renamed = [member | {"key": keys.get(member["key"], member["key"])} for member in members]
        study.members.write_text("".join(json.dumps(member) + "\n" for member in renamed))
    ingest(paths)


def with_answers(
    study: StudyData, answers: Mapping[str, Answers], base: Answers | None, task: str = "task_0"
) -> StudyData:
    """A study of one task whose confirmed runs answered the test items as given.

    Args:
        study: With finalists of the names in `answers`.
        answers: By family, shape (runs, items): runs beyond those that the study has are ignored.
        base: The base's answers, shape (items,).
        task: The task that is kept.
    """
    scores, outcomes = [], {}
    for row in (row for row in study.scores if row.task == task and row.role == "confirm"):
        if row.is_target and row.family in answers and row.repetition < len(answers[row.family]):
            values = answers[row.family][row.repetition]
            of_base = None if base is None else float(base.mean())
            scores.append(replace(row, value=float(values.mean()), base_value=of_base))
            outcomes[row.key, task] = ItemScores(identity="the same", values=values, base=base)
        elif not row.is_target and row.family in answers:
            scores.append(row)
    file = replace(study.file, tasks=[task])
    return replace(study, scores=scores, outcomes=Outcomes(outcomes), file=file)
