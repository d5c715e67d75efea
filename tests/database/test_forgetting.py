"""Report, views and advice say one thing of what was forgotten, whatever the suite's units are and what is missing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from harness.database.ingest import connect
from harness.database.rows import grouped
from harness.recommend.features import observations
from harness.records.paths import Paths
from harness.report.data import load_study_data
from harness.report.findings import compare
from tests.fabricate import fabricate, study_spec
from tests.report.studies import change_records

SUITE = {  # by skill: metric, whether more is better, scale, values to draw from
    "facts": ("acc", True, (0.0, 1.0), (0.0, 1.0)),
    "translation": ("bleu", True, (0.0, 100.0), (0.0, 100.0)),
    "stories": ("perplexity", False, (1.0, None), (2.0, 40.0)),
    "texts": ("bits_per_byte", False, (0.0, None), (1.0, 4.0)),
    "chess": ("elo", True, (None, None), (900.0, 1500.0)),
    "edits": ("ter", False, (0.0, None), (5.0, 95.0)),
}


def suite_of(paths: Paths, skills: tuple[str, ...], seed: int) -> Paths:
    """Two tasks, two finalists, three seeds each; scores off target are random, those of the base on `edits` missing."""
    spec = study_spec(tasks=2, trials=2, seeds=3)
    fabricate(paths, type(spec).model_validate(spec.model_dump(mode="json") | {"off_target": skills}))
    rng = random.Random(seed)

    def change(record: dict[str, Any]) -> None:
        for score in record["scores"][1:]:
            metric, higher, (low, high), ends = SUITE[score["task"]]
            score |= {
                "metric": metric,
                "higher_is_better": higher,
                "value": rng.uniform(*ends),
                "n": rng.choice([50, 200]),
            }
            score["scale"] = {"low": low, "high": high}
            if score["task"] == "edits" and record["config"]["steps"] == 0:
                score["comparability"] = "another tokenizer"  # as if the base had none
        group = {"whole": skills[0], "parent": skills[0], "is_group": False, "counts": True}
        record["parts"] = [score | group | {"task": "a part", "value": 0.0} for score in record["scores"][1:2]]

    change_records(paths, change)
    return paths


SUITES = [tuple(SUITE), ("chess", "edits"), ("stories", "chess", "facts"), ("edits",)]


@pytest.mark.parametrize("skills", SUITES, ids=len)
def test_all_agree(tmp_path: Path, skills: tuple[str, ...]) -> None:
    paths = suite_of(Paths(tmp_path / "results", tmp_path / "reports"), skills, len(skills))
    study = load_study_data(paths, "made_up")
    page = {
        (found.task, contender.family): (contender.worst.skill, contender.worst.size.value)
        if contender.worst
        else (None,) * 2
        for found in compare(study)
        for contender in found.contenders
    }
    assert len(page) == 4
    assert (page[next(iter(page))] == (None, None)) is (skills == ("edits",))
    with connect(paths) as connection:
        board = connection.execute("SELECT task, family, worst_skill, forgetting FROM leaderboard").fetchall()
        matrix = connection.execute("SELECT task, family, skill, skill_metric, size FROM skill_forgetting").fetchall()
        seen = [seen for seen in observations(paths, connection) if seen.role == "confirm"]
    assert {(task, family): rest for task, family, *rest in board} == {
        place: [skill, pytest.approx(size)] for place, (skill, size) in page.items()
    }
    lost = {
        (found.task, contender.family, lost.skill, lost.metric): pytest.approx(lost.size.value)
        for found in compare(study)
        for contender in found.contenders
        for lost in contender.lost
    }
    assert {tuple(place): size for *place, size in matrix} == lost
    for (task, family), runs in grouped(seen, lambda one: (one.task, one.family)).items():
        values = [run.forgetting for run in runs if run.forgetting is not None]
        mean = sum(values) / len(values) if values else None
        assert (mean if mean is None else pytest.approx(mean)) == page[task, family][1]
