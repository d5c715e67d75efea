"""What is run and what came back, as frozen dataclasses and their JSON.

A trial's record is the truth; everything else (DuckDB, surrogates, reports) is derived from records. The key of a
trial hashes what determines its outcome, so the same trial is never run twice. `records.paths` knows where records lie.

A new field is `added(default)`. Fields that have another kind of default, or none, are those of the first version: they
are always written, and hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from harness import __version__
from harness.errors import NewerRecord
from harness.records.codec import Misfit, Record, added, decode, field_types, fingerprint, to_json, unknown_fields
from harness.records.execution import Execution, StageSettings
from harness.records.scale import Scale
from harness.space import Scalar

SCHEMA_VERSION = 2


class TrialStatus(StrEnum):
    """How a trial ended. Only `complete` and `pruned` trials carry scores."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    OUT_OF_MEMORY = "out_of_memory"
    DIVERGED = "diverged"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    PREEMPTED = "preempted"

    @property
    def has_scores(self) -> bool:
        """Whether a record of this status holds scores."""
        return self in (TrialStatus.COMPLETE, TrialStatus.PRUNED)


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    status: TrialStatus
    reason: str = ""
    """Why it did not complete, in one sentence; empty for a complete trial."""


COMPLETE = Ended(TrialStatus.COMPLETE)


@dataclass(frozen=True, kw_only=True)
class Stage(Record):
    """One choice on each axis, with every hyperparameter that is not at its default."""

    method: str
    objective: str = "sft"
    retention: str = "none"
    curation: str = "as_is"
    params: Mapping[str, Scalar] = field(default_factory=dict)
    """Flat names as the plug-ins and `train.OPTIMIZER_SPACE` declare them; complete, so that a changed default
    makes another trial."""
    data: str | None = None
    """Name of another task whose training rows this stage uses; None for the trial's own task."""
    share: float = 1.0
    """Share of the pipeline's training steps that this stage gets; shares of a pipeline sum to 1."""
    data_fingerprint: str = ""
    """Of the task that `data` names; empty where it names none."""
    in_turns: bool = added(False)
    """Whether it is trained otherwise than earlier versions did it on chats: its curation wrote around what a chat template
    had rendered, or its pairs had loss on earlier answers."""
    rewarded_as_scored: bool = added(False)
    """Whether it samples answers that are rewarded up to where generation ends when they are scored; once all was."""


@dataclass(frozen=True)
class ModelRef(Record):
    """A base model as named in the study, pinned."""

    name: str
    """An embedded model (`tiny-1m`), a folder (may contain `${VARIABLE}`), or a Hugging Face id."""
    revision: str
    """Commit of a hub model; content fingerprint of a folder or embedded model."""
    corpus: str = ""
    """Fingerprint of what the study gives as the model's corpus; empty where it gives none."""
    dtype: str = added("")
    """Type that its weights are held in, where that is another than float32."""
    mixture: bool = added(False)
    """Whether it has experts; before methods reached these, the same choices trained less of it."""
    chat_template: str = added("")
    """Identity of the chat template that it is tuned and scored in; empty where prompts are plain text."""


@dataclass(frozen=True)
class TaskRef(Record):
    """A task as named in the study, pinned."""

    name: str
    fingerprint: str
    """Hash of the task's YAML and of its data (content of local files, revision of hub datasets)."""


@dataclass(frozen=True)
class Pipeline(Record):
    """A base model and a sequence of stages."""

    base_model: ModelRef
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class Evaluation(Record):
    """What is scored, and on how much of it."""

    split: str = "validation"
    """`validation` while searching, `test` when confirming (nothing else opens the test split)."""
    limit: int | None = None
    """Items per task; None scores all."""
    off_target: tuple[TaskRef, ...] = ()
    fractions: tuple[float, ...] = (1.0,)
    """Fractions of the training budget at which the learning curve scores the task; the last is 1."""


@dataclass(frozen=True, kw_only=True)
class TrialConfig(Record):
    """Everything that determines a trial's outcome; its `key` names its record."""

    pipeline: Pipeline
    task: TaskRef
    steps: int
    """Optimiser steps of the full training budget (fidelity 1); 0 trains nothing."""
    fidelity: float = 1.0
    """Share of the full training budget that this trial gets, in (0, 1]. The learning-rate schedule always spans
    the full budget, so a trial at fidelity 1/3 is the first third of the one at 1."""
    seed: int = 0
    evaluation: Evaluation = field(default_factory=Evaluation)

    @cached_property
    def key(self) -> str:
        """Hash of the canonical JSON of all fields that are not `added` and at their default, 20 hexadecimal digits."""
        return fingerprint(to_json(self))

    def stage_steps(self, stage: Stage) -> int:
        """Optimiser steps of one of its stages over the full budget: its share of the pipeline's, rounded."""
        return round(self.steps * stage.share)

    def stage_stop(self, stage: Stage) -> int:
        """Optimiser steps after which one of its stages ends at this fidelity: at least one, where it has any."""
        steps = self.stage_steps(stage)
        return min(steps, max(1, round(self.fidelity * steps)))

    @property
    def pipeline_steps(self) -> int:
        """Optimiser steps of all stages over the full budget; rounding may make them differ from `steps`."""
        return sum(map(self.stage_steps, self.pipeline.stages))

    @property
    def steps_run(self) -> int:
        """Optimiser steps of all stages at this fidelity."""
        return sum(map(self.stage_stop, self.pipeline.stages))

    def at(self, fidelity: float) -> TrialConfig:
        """The same trial at another fidelity."""
        return replace(self, fidelity=fidelity)


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """One metric of one task on one split."""

    task: str
    split: str
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    comparability: str
    """Scores with different keys are never ranked against each other."""
    chance: float | None = None
    """Score of guessing: as the task states it, or what it gives where each item is a right or a wrong choice."""
    scale: Scale | None = added(None)  # noqa: RUF009  it makes a field
    """What was declared of the metric's values; None in records of before it was asked for."""
    majority: float | None = added(None)
    """Score of one answer to all items, the one that is most often right; None where items have no one right answer."""


@dataclass(frozen=True, kw_only=True)
class PartScore(Score):
    """The score of a task or group within a group that was scored."""

    whole: str
    """The group that has a score of its own in the record."""
    parent: str
    """The group that lists it: the whole, or one within."""
    is_group: bool
    counts: bool
    """Whether the score of the whole is made of it, too."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint(Record):
    """The learning curve at one fraction of the full training budget."""

    fraction: float
    step: int
    train_seconds: float
    """Wall seconds of training so far, evaluation excluded."""
    tokens: int
    loss: float | None
    """Mean training loss since the last point, nats per supervised token; None before any step."""
    score: float | None
    """The task's metric on the trial's split, at most `Evaluation.limit` items."""


@dataclass(frozen=True)
class PathPoint(Record):
    """Scores at one place of the way from the base's weights to the tuned ones."""

    tuned_weight: float
    """0 is the base, 1 the tuned model."""
    scores: tuple[Score, ...]
    """The task's own score first, then the off-target suite, as a record has them."""


@dataclass(frozen=True, kw_only=True)
class CostRecord(Record):
    """Everything a trial cost, failures included. Seconds are wall seconds on one monotonic clock."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """By phase: load, data, train, evaluate, save."""
    cpu_s: float = 0.0
    gpu_s: float = 0.0
    """GPUs held x wall seconds."""
    peak_memory_bytes: int | None = None
    """Device memory on a GPU, resident set on a CPU; of the training window only."""
    tokens: int = 0
    supervised_tokens: int = 0
    flops: float = 0.0
    energy_j: float | None = None
    money: float | None = None
    trainable_params: int = 0
    total_params: int = 0
    artifact_bytes: int = 0
    solo_equivalent_s: float | None = None
    """Training seconds that the trial would have taken alone, where it was trained together with others, or that was tried."""
    trained_with: int = 1
    """Trials that were trained together, itself included; its `seconds` are its share of what they took."""
    utilisation: float | None = None
    """Model FLOPs of training over the training seconds times the hardware's measured peak; None where not measured."""

    @property
    def total_s(self) -> float:
        """Wall seconds of all phases."""
        return sum(self.seconds.values())

    @property
    def solo_s(self) -> float:
        """Wall seconds of all phases, had it been trained alone: what methods are compared by."""
        if self.solo_equivalent_s is None:
            return self.total_s
        return self.total_s - self.seconds.get("train", 0.0) + self.solo_equivalent_s


@dataclass(frozen=True, kw_only=True)
class Provenance(Record):
    """Where and with what a trial ran, as far as it may matter when scores are compared."""

    harness_version: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    hostname: str = ""
    python: str = ""
    git_commit: str | None = None
    started_at: str = ""
    """UTC, ISO 8601."""
    effective: Execution = field(default_factory=Execution)
    """How it was really run, read back from the libraries' objects."""
    source: str = added("")
    """Who ran it, where the harness did not: the name under which it was imported."""
    study: str = added("")
    """Study whose driver had it run; empty where no study did, and in records of earlier versions."""
    plugins: Mapping[str, str] | None = added(None)
    """Hash of the code of each plug-in that the outcome depends on, by folder and name (`methods/lora`). None where it
    was not taken, as in records of the first version: nothing is known of their code."""


@dataclass(frozen=True, kw_only=True)
class TrialResult(Record):
    """A trial's record."""

    config: TrialConfig
    status: TrialStatus
    reason: str = ""
    """Why it did not complete, in one sentence; empty for a complete trial."""
    scores: tuple[Score, ...] = ()
    """The task's own score first, then the off-target suite in the study's order."""
    curve: tuple[CurvePoint, ...] = ()
    cost: CostRecord = field(default_factory=CostRecord)
    provenance: Provenance = field(default_factory=Provenance)
    notes: tuple[str, ...] = ()
    """What a reader must know beside the score: train/test overlap, truncated rows, fallbacks."""
    path: tuple[PathPoint, ...] = ()
    """Scores of other weights than the final ones, where retention walks through some."""
    parts: tuple[PartScore, ...] = added(())
    """Of the groups among the scores: what they are made of, each group before its members."""
    schema_version: int = SCHEMA_VERSION

    @property
    def target(self) -> Score | None:
        """The score of the trial's own task, or None where there is none."""
        return next((score for score in self.scores if score.task == self.config.task.name), None)


@dataclass(frozen=True, kw_only=True)
class Forecast(Record):
    """What `plan` predicted for the quantities that `CostRecord` measures."""

    seconds: float
    artifact_bytes: float
    peak_memory_bytes: float | None = None
    """None where it is not known."""
    flops: float = 0.0
    money: float | None = None
    basis: str = "formula"
    """`formula` or the number of past trials that it rests on, in words."""


def derive_seed(*names: str | int) -> int:
    """A seed in [0, 2**31) from a hash of names (study seed, role, repetition), never from a counter."""
    # the separator stands in no name, so that ("ab", "c") and ("a", "bc") differ
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def result_from_json(data: Mapping[str, Any]) -> TrialResult:
    """A record of any known schema version, without its digest.

    Raises:
        NewerRecord: When a newer version of the harness wrote it.
        Misfit: When it does not have what a record must have.
    """
    result = decode(TrialResult, migrate(data))
    if not result.config.pipeline.stages:
        raise Misfit("a list of at least one stage", [], "config.pipeline.stages")
    # a note reaches the report; the fields themselves go back into the file with `to_json`
    unknown = ", ".join(unknown_fields(result))
    note = f"the record has fields that harness {__version__} does not know: {unknown}"
    return replace(result, notes=(*result.notes, note)) if unknown and note not in result.notes else result


def migrate(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bring a record's JSON to the current schema version.

    Raises:
        NewerRecord: When a newer version of the harness wrote it.
        Misfit: When it has no version that there ever was.
    """
    version = data.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Misfit("a whole number from 1 on", version, "schema_version")
    if version > SCHEMA_VERSION:
        raise NewerRecord(
            f"a record must have schema version {SCHEMA_VERSION} at most, but has {version}: update harness to read it"
        )
    for step in _MIGRATIONS[version - 1 :]:
        data = step(data)
    return data


def _from_1(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Version 2 brought the digest, which stands beside the fields of a record, and a place for what a trainer has seen.

    In version 1 that stood among the settings of its stage.
    """
    data = {**data, "schema_version": 2}
    try:
        provenance = data["provenance"]
        effective = provenance["effective"]
        stages = [_with_observed(stage) for stage in effective["stages"]]
    except (KeyError, TypeError, AttributeError):  # it has none, or is no record, which the decoder judges
        return data
    return {**data, "provenance": {**provenance, "effective": {**effective, "stages": stages}}}


def _with_observed(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    known = field_types(StageSettings)
    observed = {name: value for name, value in stage.items() if name not in known}
    return {**{name: value for name, value in stage.items() if name in known}, "observed": observed or None}


_MIGRATIONS = (_from_1,)
"""What brings a record of version 1, 2, ... to the next one."""
