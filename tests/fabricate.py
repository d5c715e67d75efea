"""Plausible records with a known truth, for tests and benchmarks of the half that learns; nothing is trained.

A trial's score is base + headroom x quality(family) x bump(log learning rate) + noise; forgetting grows with the
learning rate and with the family's grip on the weights. `World` holds these numbers, so a test can ask what is true.
Trials of the method lora trained together, `GAIN` times faster than alone; all others alone, with a reason.
Trials of the retention interpolation have eleven places on the way from base to tuned weights: what is learned comes
early on it, what is forgotten late.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.records.codec import fingerprint
from harness.records.execution import Execution
from harness.records.paths import Paths
from harness.records.results import result_text
from harness.records.trial import (
    CostRecord,
    CurvePoint,
    Evaluation,
    ModelRef,
    PathPoint,
    Pipeline,
    Provenance,
    Score,
    Stage,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
    derive_seed,
)
from harness.space import Choice, Float, Integer, Scalar
from harness.study.family import Family, FamilyStage, resolved_families
from harness.study.load import load_study
from harness.study.spec import StageSpec, StudySpec

LEARNING_RATE = Float(1e-5, 1e-1, default=1e-3, log=True)
FAMILIES = {
    "full": Family("full", (FamilyStage(StageSpec(method="full"), {"learning_rate": LEARNING_RATE}, 1.0),)),
    "lora": Family(
        "lora",
        (
            FamilyStage(
                StageSpec(method="lora"),
                {
                    "learning_rate": LEARNING_RATE,
                    "rank": Integer(1, 64, 8, log=True),
                    "targets": Choice(("attention", "all"), "all"),
                },
                1.0,
            ),
        ),
    ),
    "full_replay": Family(
        "full_replay",
        (FamilyStage(StageSpec(method="full", retention="replay"), {"learning_rate": LEARNING_RATE}, 1.0),),
    ),
}
"""Families with spaces of their own, so that no plug-in has to be imported."""

GAIN = 1.6
"""How many times longer a trial of lora would have trained alone."""
ALONE = "method full moves the base's own weights"

OFF_TARGET = {"facts": True, "stories_perplexity": False}
"""Off-target task to whether higher is better."""


@dataclass(frozen=True)
class Truth:
    """What is true of a trial before noise."""

    score: float
    forgetting: float
    seconds: float
    memory_bytes: float


@dataclass(frozen=True)
class World:
    """The numbers behind all records: by family the best learning rate (log10), its quality, and how it forgets."""

    seed: int = 0
    best: Mapping[str, float] = field(default_factory=lambda: {"full": -3.5, "lora": -2.2, "full_replay": -3.3})
    quality: Mapping[str, float] = field(default_factory=lambda: {"full": 0.85, "lora": 0.6, "full_replay": 0.8})
    grip: Mapping[str, float] = field(default_factory=lambda: {"full": 0.3, "lora": 0.06, "full_replay": 0.1})
    noise: float = 0.01

    def base(self, task: str) -> float:
        """Base score of a task, between .1 and .5."""
        return 0.1 + 0.4 * self._unit("base", task)

    def rows(self, task: str) -> int:
        """Training rows of a task, 200 to 20,000."""
        return round(200 * 100 ** self._unit("rows", task))

    def truth(self, family: str, task: str, values: Mapping[str, Scalar], fidelity: float = 1.0) -> Truth:
        """Score, worst forgetting, seconds and memory without noise; unknown families look like the middle one."""
        offset = math.log10(float(values.get("learning_rate", 1e-3))) - self.best.get(family, -3.0)
        bump = math.exp(-(offset**2) / 0.8) * (1 - math.exp(-3 * fidelity))
        base, rank = self.base(task), float(values.get("rank", 8))
        gain = (1 - base) * self.quality.get(family, 0.7) * bump * (0.9 + 0.1 * math.log2(rank) / 6)
        lost = self.grip.get(family, 0.15) * min(2.0, 10 ** (0.5 * offset)) * fidelity
        seconds = (4.0 if family != "lora" else 3.0) * fidelity * (1 + 0.2 * math.log10(self.rows(task))) + 1
        return Truth(base + gain, lost, seconds, 3e8 * (1.0 if family == "lora" else 1.8))

    def _unit(self, *names: str) -> float:
        return derive_seed(self.seed, *names) / 2**31


@dataclass(frozen=True)
class Fabricated:
    """What was written."""

    world: World
    study: StudySpec
    families: Mapping[str, Family]
    results: tuple[TrialResult, ...]
    members: tuple[dict[str, object], ...]


def study_spec(name: str = "made_up", tasks: int = 3, trials: int = 4, seeds: int = 3) -> StudySpec:
    """A study over `tasks` invented tasks and the families above."""
    return StudySpec.model_validate(
        {
            "name": name,
            "question": "Which of three ways suits invented tasks?",
            "base_models": ["tiny-1m"],
            "tasks": [f"task_{index}" for index in range(tasks)],
            "off_target": list(OFF_TARGET),
            "families": {
                "full": {"method": "full"},
                "lora": {"method": "lora"},
                "full_replay": {"method": "full", "retention": "replay"},
            },
            "budget": {"trials": trials, "steps": 60},
            "confirm": {"finalists": 2, "seeds": seeds},
        }
    )


def fabricate(
    paths: Paths,
    study: StudySpec | Path | None = None,
    families: Mapping[str, Family] | None = None,
    world: World | None = None,
    items: int = 0,
) -> Fabricated:
    """Write records, items, member list, study file, task and model facts as a finished study would leave them.

    Args:
        paths: Where to write.
        study: A study or its file; None for `study_spec()`.
        families: The study's families; None resolves them from its plug-ins, or takes `FAMILIES` when `study` is None.
        world: The truth; None for `World(0)`.
        items: Items per task of confirm trials' item files; 0 writes none.
    """
    spec = study_spec() if study is None else load_study(study) if isinstance(study, Path) else study
    if families is None:
        families = FAMILIES if set(spec.families) <= set(FAMILIES) else resolved_families(spec)
    maker = _Maker(paths, spec, families, world or World(), items)
    for model in spec.base_models:
        for task in spec.tasks:
            maker.cell(model.name, task)
    maker.finish()
    return Fabricated(maker.world, spec, families, tuple(maker.results), tuple(maker.members))


class _Maker:
    def __init__(self, paths: Paths, spec: StudySpec, families: Mapping[str, Family], world: World, items: int) -> None:
        self.paths, self.spec, self.families, self.world, self.items = paths, spec, families, world, items
        self.results: list[TrialResult] = []
        self.members: list[dict[str, object]] = []
        self.off_target = {name: OFF_TARGET.get(name, True) for name in spec.off_target}

    def cell(self, model: str, task: str) -> None:
        for split in ("validation", "test"):
            self._add("base", task, Pipeline(_model(model), (Stage(method="none"),)), {}, ("base", 0, split, 0))
        best: list[tuple[float, str, Pipeline, dict[str, Scalar]]] = []
        for name, family in self.families.items():
            rng = random.Random(derive_seed(self.spec.seed, "draw", model, task, name))
            for number in range(self.spec.budget.trials or 4):
                values = {key: d.sample(rng) for key, d in family.space.items()}
                pipeline = family.pipeline(_model(model), values)
                result = self._add(name, task, pipeline, values, ("search", number, "validation", 0))
                if result.target:
                    best.append((result.target.value, name, pipeline, values))
        finalists = {name: (pipeline, values) for _, name, pipeline, values in sorted(best, key=lambda b: b[0])}
        order = list(dict.fromkeys(name for _, name, *_ in sorted(best, key=lambda b: -b[0])))
        for name in order[: self.spec.confirm.finalists]:
            for repetition in range(self.spec.confirm.seeds):
                self._add(name, task, *finalists[name], ("confirm", 0, "test", repetition))

    def finish(self) -> None:
        files = self.paths.study(self.spec.name)
        files.folder.mkdir(parents=True, exist_ok=True)
        study = {"fingerprint": self.spec.fingerprint, "study": self.spec.model_dump(mode="json")}
        files.spec.write_text(json.dumps(study))
        files.members.write_text("".join(json.dumps(member) + "\n" for member in self.members))
        files.facts("tasks").write_text(json.dumps({task: task_facts(self.world, task) for task in self.spec.tasks}))
        files.facts("models").write_text(json.dumps({m.name: MODEL_FACTS for m in self.spec.base_models}))

    def _add(
        self, family: str, task: str, pipeline: Pipeline, values: Mapping[str, Scalar], why: tuple[str, int, str, int]
    ) -> TrialResult:
        role, number, split, repetition = why
        config = TrialConfig(
            pipeline=pipeline,
            task=TaskRef(task, fingerprint(task)),
            steps=0 if family == "base" else self.spec.budget.steps or 60,
            seed=derive_seed(self.spec.seed, role, repetition),
            evaluation=Evaluation(split, None, tuple(TaskRef(n, fingerprint(n)) for n in self.off_target)),
        )
        together = {"search": self.spec.budget.trials or 4, "confirm": self.spec.confirm.seeds}.get(role, 1)
        result = self._result(config, family, values, together)
        path = self.paths.record(config.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.items and split == "test" and result.scores:
            result = _write_items(self.paths.items(config.key), result, self.items)
        path.write_text(result_text(result))
        self.results.append(result)
        self.members.append(
            {"key": config.key, "role": role, "family": family, "task": task,
             "base_model": pipeline.base_model.name, "repetition": repetition, "number": number,
             "params": dict(values), "reused": False, "asked_at": "2026-11-22T10:00:00+00:00"}
        )  # fmt: skip
        return result

    def _result(self, config: TrialConfig, family: str, values: Mapping[str, Scalar], together: int) -> TrialResult:
        rng = random.Random(config.key)
        truth = self.world.truth(family, config.task.name, values)
        is_base, noise = family == "base", self.world.noise
        fused = config.pipeline.stages[0].method == "lora"
        effective = Execution(alone=None if fused or is_base else ALONE)
        provenance = Provenance(
            harness_version="0.1.0",
            versions=VERSIONS,
            hardware="CPU",
            hostname="host",
            python="3.11.9",
            git_commit=None,
            started_at="2026-11-22T10:00:00+00:00",
            effective=effective,
        )
        rate = float(values.get("learning_rate", 0))
        if not is_base and math.log10(rate) - self.world.best.get(family, -3.0) > 2:
            cost = CostRecord(seconds={"load": 0.5, "train": truth.seconds / 3}, cpu_s=truth.seconds / 3)
            reason = "the loss became non-finite at step 20: lower learning_rate"
            return TrialResult(
                config=config, status=TrialStatus.DIVERGED, reason=reason, cost=cost, provenance=provenance
            )
        score = self.world.base(config.task.name) if is_base else truth.score + rng.gauss(0, noise)
        scores = [_score(config.task.name, config, min(max(score, 0.0), 1.0), True)]
        for name, higher in self.off_target.items():
            lost = 0.0 if is_base else truth.forgetting * (1 if name == next(iter(self.off_target)) else 0.5)
            lost += 0.0 if is_base else rng.gauss(0, noise / 2)
            scores.append(_score(name, config, 0.9 - lost if higher else 5.0 + lost, higher))
        base = self.world.base(config.task.name)
        curve = tuple(
            CurvePoint(
                fraction=f,
                step=round(f * config.steps),
                train_seconds=f * truth.seconds,
                tokens=int(6400 * f),
                loss=3 - 2 * f,
                score=base + f * (score - base),
            )
            for f in ((1.0,) if is_base else (0.25, 0.5, 1.0))
        )
        cost = _cost(truth, is_base, together if fused else 1)
        result = TrialResult(
            config=config,
            status=TrialStatus.COMPLETE,
            reason="",
            scores=tuple(scores),
            curve=curve,
            cost=cost,
            provenance=provenance,
        )
        return self._walked(result, values) if config.pipeline.stages[-1].retention == "interpolation" else result

    def _walked(self, tuned: TrialResult, values: Mapping[str, Scalar]) -> TrialResult:
        """What interpolation makes of a trial's tuned weights."""

        def at(weight: float) -> tuple[Score, ...]:
            found = []
            for score in tuned.scores:
                is_target = score.task == tuned.config.task.name
                start = self.world.base(score.task) if is_target else 0.9 if score.higher_is_better else 5.0
                share = 1 - (1 - weight) ** 2 if is_target else weight**2
                found.append(replace(score, value=start + share * (score.value - start)))
            return tuple(found)

        path = tuple(PathPoint(place / 10, at(place / 10)) for place in range(11))
        return replace(tuned, scores=at(float(values["tuned_weight"])), path=path)


def write_signed(path: Path, record: dict[str, Any]) -> None:
    """Write a record's JSON with the digest that it must have, whatever it holds."""
    content = {name: value for name, value in record.items() if name != "digest"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"digest": fingerprint(content)}))


def task_facts(world: World, task: str) -> dict[str, float | str]:
    """Facts of an invented task, as the driver stores them."""
    return {
        "output_type": "generate_until", "metric": "acc", "higher_is_better": 1.0, "chance": 0.0,
        "log_rows": math.log10(world.rows(task)), "log_prompt_chars": 1.6, "log_completion_chars": 0.9,
        "choices": 0.0, "domain": "",
    }  # fmt: skip


MODEL_FACTS = {"log_parameters": 6.0, "layers": 4.0, "log_width": 2.1, "log_vocab": 3.3, "type": "llama"}
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "trl": "1.16.0", "lm-eval": "0.4.13"}


def _model(name: str) -> ModelRef:
    return ModelRef(name, fingerprint(name))


def _score(task: str, config: TrialConfig, value: float, higher: bool) -> Score:
    metric = "acc" if higher else "perplexity"
    value = min(max(value, 0.0), 1.0) if higher else value
    error = math.sqrt(value * (1 - value) / 200) if higher else 0.1
    return Score(
        task=task,
        split=config.evaluation.split,
        metric=metric,
        value=value,
        stderr=error,
        n=200,
        higher_is_better=higher,
        comparability=fingerprint([task, metric]),
        chance=None,
    )


def _cost(truth: Truth, is_base: bool, together: int) -> CostRecord:
    alone = 0.0 if is_base else truth.seconds - 1
    train = alone / GAIN if together > 1 else alone
    return CostRecord(
        seconds={"load": 0.4, "data": 0.1, "train": train, "evaluate": 0.4, "save": 0.1},
        cpu_s=train + 1,
        peak_memory_bytes=int(truth.memory_bytes),
        tokens=6400,
        supervised_tokens=800,
        flops=6.0 * 1e6 * 6400,
        trainable_params=0 if is_base else 100_000,
        total_params=1_000_000,
        solo_equivalent_s=alone if together > 1 else None,
        trained_with=together,
        utilisation=None if is_base else 0.4 if together > 1 else 0.25,
    )


def _write_items(path: Path, result: TrialResult, count: int) -> TrialResult:
    """Item outcomes whose mean is the score, which is rounded for that; items have one difficulty for all trials."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[object]] = {
        name: [] for name in ("task", "split", "metric", "doc_hash", "value", "prediction")
    }
    scores = []
    for score in result.scores:
        right = round(score.value * count)
        order = sorted(range(count), key=lambda item: hashlib.sha256(f"{score.task}{item}".encode()).hexdigest())
        scores.append(replace(score, value=right / count) if score.higher_is_better else score)
        for rank, item in enumerate(order):
            value = float(rank < right) if score.higher_is_better else score.value
            row = (score.task, score.split, score.metric, fingerprint([score.task, item]), value, None)
            for name, cell in zip(columns, row, strict=True):
                columns[name].append(cell)
    types = pa.schema([(name, pa.float64() if name == "value" else pa.string()) for name in columns])
    pq.write_table(pa.table(columns, schema=types), path)
    return replace(result, scores=tuple(scores))
