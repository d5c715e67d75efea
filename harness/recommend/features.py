"""What is knowable of a trial before it is trained, as numbers for the surrogates; and the evidence they learn from.

Nothing here may look at a trial's own scores, curve or cost: `describe` is given a `Candidate`, which has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.database.rows import read_rows, stages_of
from harness.errors import SpecError, StorageError
from harness.files import parse_json
from harness.plugins import AXIS_FOLDER
from harness.records.bundle import read_bundle
from harness.records.paths import Paths
from harness.records.scale import Scale
from harness.records.trial import Stage
from harness.space import Choice, Distribution, Float, Integer, Params, Scalar, Text, searched
from harness.study.family import OPTIMIZER_SPACE, stage_space

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray


Facts = Mapping[str, float | str]
_TEXTS = ("output_type", "metric", "domain", "type")
"""Facts that are texts; all others are numbers."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A pipeline on a task, before it is run."""

    stages: tuple[Stage, ...]
    steps: int
    fidelity: float
    model: Facts
    """As `models.facts.model_features` gives it."""
    task: Facts
    """As `tasks.facts.task_features` gives it."""
    base_score: float | None
    """The base model's own score on the task, where it is known."""
    higher_is_better: bool = True
    scale: Scale = field(default_factory=Scale)
    """Of the task's metric."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """A candidate that was run, and what came of it."""

    key: str
    task: str
    base_model: str
    family: str
    """Its name in a study, else its methods."""
    pipeline: str
    """Equal for runs that differ in seed, split or fidelity."""
    role: str
    candidate: Candidate
    comparability: str
    split: str
    metric: str
    score: float
    gain: float | None
    """Towards better, as share of `room`; None without a comparable base score, or a room."""
    forgetting: float | None
    """Worst over the off-target suite: a share of the metric's scale, or units of a metric without one."""
    forgetting_is_share: bool | None
    """Whether it is a share of a scale with two ends: the two never add up."""
    seconds: float | None
    """Wall seconds of the whole trial, had it been trained alone."""
    memory_bytes: float | None


def room(base_score: float, higher_is_better: bool, scale: Scale) -> float | None:
    """How much there is to gain, in score units: up to 1 for a share, down to 0 for a loss.

    Args:
        base_score: Of the base model, in the metric's own unit.
        higher_is_better: False for losses and perplexities.
        scale: Of the metric.

    Returns:
        None where no best value is declared: a gain is then no share of anything.
    """
    best = scale.best(higher_is_better)
    if best is None:
        return None
    # A base that is nearly perfect would make every gain, which is a share of the room, nearly infinite.
    return max(abs(best - base_score), 0.05 * (scale.width or 1.0))


def describe(candidate: Candidate) -> dict[str, float | str]:
    """Features by name: numbers (logarithms where the space is logarithmic) and categories; the unknown is left out."""
    trained = max(1.0, candidate.steps * candidate.fidelity)
    features: dict[str, float | str] = {
        "stages": float(len(candidate.stages)),
        "log_steps": math.log10(max(1, candidate.steps)),
        "log_trained_steps": math.log10(trained),
        "fidelity": candidate.fidelity,
    }
    for index, stage in enumerate(candidate.stages):
        features |= {f"stage{index}.{name}": value for name, value in _stage(stage, trained).items()}
    features |= {f"model.{name}": value for name, value in candidate.model.items()}
    features |= {f"task.{name}": value for name, value in candidate.task.items()}
    if candidate.base_score is not None:
        features["task.base_score"] = candidate.base_score
        if (left := room(candidate.base_score, candidate.higher_is_better, candidate.scale)) is not None:
            features["task.room"] = left
        features["task.above_chance"] = candidate.base_score - float(candidate.task.get("chance", 0.0))
    return features


def _stage(stage: Stage, trained: float) -> dict[str, float | str]:
    choices = tuple(getattr(stage, axis) for axis in AXIS_FOLDER)
    space = _space(choices)
    params = Params(stage.params)
    rows = params.number("batch_size", 1) * params.number("gradient_accumulation", 1)
    return {
        **dict(zip(AXIS_FOLDER, choices, strict=True)),
        "share": stage.share,
        "other_data": float(stage.data is not None),
        "log_examples": math.log10(max(1.0, trained * stage.share * rows)),
        **{f"param.{name}": _number(value, space.get(name)) for name, value in stage.params.items()},
    }


def _number(value: Scalar, distribution: Distribution | None) -> float | str:
    if isinstance(value, str):
        return value
    # A distance between learning rates is a ratio, and so is one of other parameters that span decades.
    is_log = isinstance(distribution, Float | Integer) and distribution.log
    return math.log10(value) if is_log and value > 0 else float(value)


@lru_cache(maxsize=256)
def _space(choices: tuple[str, ...]) -> Mapping[str, Distribution]:
    """The declared space of a stage; records may name a plug-in that is gone."""
    try:
        return stage_space(dict(zip(AXIS_FOLDER, choices, strict=True)))
    except SpecError:
        return OPTIMIZER_SPACE


@dataclass(frozen=True)
class Encoder:
    """Features as a matrix: numbers (unknown = the median seen), whether they are known, categories one-hot, constants dropped.

    A number that is always positive and spans a factor of ten or more is compared by its ratio.
    """

    columns: tuple[str, ...]
    """`name` of a number, `name=` where it is not known or not there, `name=category` of a category."""
    centre: NDArray[np.float64]
    """Medians, shape (columns,)."""
    spread: NDArray[np.float64]
    """Standard deviations, shape (columns,)."""
    spans: NDArray[np.bool_]
    """Which numbers are compared by their ratio, shape (columns,)."""

    @classmethod
    def fit(cls, described: Sequence[Mapping[str, float | str]]) -> Encoder:
        """Learn the columns from features seen."""
        names = {f"{n}={v}" if isinstance(v, str) else n for features in described for n, v in features.items()}
        columns = tuple(sorted(names | {f"{n}=" for n in names if "=" not in n}))
        values = _matrix(described, columns)
        spans = np.array([_spans(column) for column in values.T], dtype=bool)
        values[:, spans] = np.log10(values[:, spans])
        is_number = ~np.isnan(values)
        centre = np.array([np.median(column[mask]) for column, mask in zip(values.T, is_number.T, strict=True)])
        spread = np.where(is_number, values, centre).std(axis=0)
        varies = spread > 0
        return cls(tuple(np.array(columns, dtype=object)[varies]), centre[varies], spread[varies], spans[varies])

    def transform(self, described: Sequence[Mapping[str, float | str]]) -> NDArray[np.float64]:
        """Features as rows of numbers, shape (n, columns); columns that were not seen at `fit` are left out."""
        values = _matrix(described, self.columns)
        positive = np.where(values > 0, values, np.nan)
        values = np.where(self.spans, np.log10(positive), values)
        return np.where(np.isnan(values), self.centre, values)

    def distances(self, rows: NDArray[np.float64], row: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far rows are from another, each column in units of its standard deviation.

        Args:
            rows: As `transform` gives them, shape (n, columns).
            row: Shape (columns,).

        Returns:
            Root mean squared differences, shape (n,).
        """
        scaled: NDArray[np.float64] = (rows - row) / self.spread
        return np.sqrt(np.mean(scaled**2, axis=1)) if scaled.size else np.zeros(len(rows))


def _matrix(described: Sequence[Mapping[str, float | str]], columns: Sequence[str]) -> NDArray[np.float64]:
    matrix = np.full((len(described), len(columns)), np.nan)
    place = {column: index for index, column in enumerate(columns)}
    categorical = [index for index, column in enumerate(columns) if "=" in column]
    # A category that a row does not name is not its own; a number that it does not name is unknown.
    matrix[:, categorical] = 0.0
    matrix[:, [index for index, column in enumerate(columns) if column.endswith("=")]] = 1.0
    for row, features in enumerate(described):
        for name, value in features.items():
            index = place.get(f"{name}={value}" if isinstance(value, str) else name)
            if index is not None:
                matrix[row, index] = 1.0 if isinstance(value, str) else value
            if not isinstance(value, str) and (unknown := place.get(f"{name}=")) is not None:
                matrix[row, unknown] = 0.0
    return matrix


def _spans(values: NDArray[np.float64]) -> bool:
    known = values[~np.isnan(values)]
    return bool(len(known) and known.min() > 0 and known.max() >= 10 * known.min())


@dataclass(frozen=True, kw_only=True)
class _TrialRow:
    """A row of `_TRIALS`: a trial that trained something, with its score on its own task."""

    key: str
    task: str
    base_model: str
    family: str
    pipeline: str
    role: str
    stages: str
    """JSON."""
    steps: int
    fidelity: float
    split: str
    metric: str
    value: float
    higher_is_better: bool
    low: float | None
    high: float | None
    comparability: str
    base_value: float | None
    worst: float | None
    is_share: bool | None
    solo_s: float | None
    peak_memory_bytes: int | None


_TRIALS = """
SELECT t.key, t.task, t.base_model, t.pipeline, t.stages, t.steps, t.fidelity, s.split, s.metric, s.value, s.higher_is_better,
  s.low, s.high, s.comparability, b.value AS base_value, f.worst, f.is_share, c.solo_s, c.peak_memory_bytes,
  coalesce(m.family, t.method) AS family, coalesce(m.role, '') AS role
FROM trials t JOIN scores s ON s.key = t.key AND s.is_target JOIN costs c ON c.key = t.key
  LEFT JOIN worst_forgetting f ON f.key = t.key
  LEFT JOIN (SELECT key, min(family) AS family, max(role) AS role FROM members GROUP BY key) m ON m.key = t.key
  LEFT JOIN base_scores b ON b.base_model = t.base_model AND b.base_revision = t.base_revision AND b.task = t.task
    AND b.split = s.split AND b.metric = s.metric AND b.comparability = s.comparability
WHERE t.steps > 0
QUALIFY row_number() OVER (PARTITION BY t.key ORDER BY (b.n = s.n) DESC NULLS LAST, b.n DESC) = 1
ORDER BY t.key"""


def observations(paths: Paths, connection: DuckDBPyConnection) -> list[Observation]:
    """Every trial that trained something and has a score, in key order.

    Args:
        paths: Of the results folder, whose studies' facts of tasks and models are read.
        connection: To its database.
    """
    tasks, models = known_facts(paths, "tasks"), known_facts(paths, "models")
    return [_observation(row, tasks, models) for row in read_rows(connection, _TRIALS, [], _TrialRow)]


def _observation(row: _TrialRow, tasks: Mapping[str, Facts], models: Mapping[str, Facts]) -> Observation:
    gain, scale = None, Scale(low=row.low, high=row.high)
    if row.base_value is not None and (left := room(row.base_value, row.higher_is_better, scale)) is not None:
        better = row.value - row.base_value if row.higher_is_better else row.base_value - row.value
        gain = better / left
    return Observation(
        key=row.key,
        task=row.task,
        base_model=row.base_model,
        family=row.family,
        pipeline=row.pipeline,
        role=row.role,
        candidate=Candidate(
            stages=stages_of(row.stages),
            steps=row.steps,
            fidelity=row.fidelity,
            model=models.get(row.base_model, {}),
            task=tasks.get(row.task, {}),
            base_score=row.base_value,
            higher_is_better=row.higher_is_better,
            scale=scale,
        ),
        comparability=row.comparability,
        split=row.split,
        metric=row.metric,
        score=row.value,
        gain=gain,
        forgetting=row.worst,
        forgetting_is_share=row.is_share,
        seconds=row.solo_s,
        memory_bytes=row.peak_memory_bytes,
    )


def of_one_kind(seen: Sequence[Observation], shares: bool) -> list[Observation]:
    """The observations; forgetting that is not of that kind is left out.

    Args:
        seen: Observations of both kinds.
        shares: Whether shares of a scale (accuracies) are meant, or losses.
    """
    return [o if o.forgetting_is_share is shares else replace(o, forgetting=None) for o in seen]


def known_facts(paths: Paths, kind: Literal["tasks", "models"]) -> dict[str, Facts]:
    """Facts by name, from imported runs and all studies; what is damaged is left out, since facts only sharpen a prediction.

    Args:
        paths: Of the results folder.
        kind: Whether of tasks or of base models.
    """
    facts: dict[str, Facts] = {}
    for path in paths.bundles():
        with suppress(StorageError):
            _add(facts, read_bundle(path).tasks if kind == "tasks" else read_bundle(path).models)
    for study in paths.studies():
        with suppress(OSError, ValueError, AttributeError):
            _add(facts, parse_json(study.facts(kind).read_text()))
    return facts


def _add(facts: dict[str, Facts], more: Mapping[str, Facts]) -> None:
    for name, own in more.items():
        facts[name] = {fact: value for fact, value in own.items() if _can_be(fact, value)}


def _can_be(fact: str, value: object) -> bool:
    """Whether a fact may have a value; the largest decadic logarithm is that of a number that a computer holds."""
    if fact in _TEXTS:
        return isinstance(value, str)
    return isinstance(value, int | float) and abs(value) < (300 if fact.startswith("log_") else 1e9)


def default_distance(stages: Sequence[Stage]) -> float:
    """Mean difference of the searched parameters from their literature defaults, as shares of their ranges.

    A category that is not the default counts 1. Zero where nothing is searched or the plug-in is gone.
    """
    differences = []
    for stage in stages:
        space = _space(tuple(getattr(stage, axis) for axis in AXIS_FOLDER))
        for name, distribution in searched(space).items():
            if name not in stage.params:
                continue
            value, usual = _number(stage.params[name], distribution), _number(distribution.default, distribution)
            if isinstance(distribution, Choice | Text) or isinstance(value, str) or isinstance(usual, str):
                differences.append(float(value != usual))
                continue
            ends = [float(_number(end, distribution)) for end in (distribution.low, distribution.high)]
            differences.append(abs(value - usual) / max(ends[1] - ends[0], 1e-12))
    return float(np.mean(differences)) if differences else 0.0


def telling_params(stage: Stage) -> dict[str, Scalar]:
    """The parameters that a reader must know: those that are usually searched or are not at their defaults."""
    space = _space(tuple(getattr(stage, axis) for axis in AXIS_FOLDER))
    return {
        name: value
        for name, value in stage.params.items()
        if name not in space or space[name].searched or value != space[name].default
    }
