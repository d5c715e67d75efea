"""From a table of runs and its mapping to ordinary records with a foreign provenance.

Nothing is invented: what no column gives stays at "not known", and a row that cannot be a record is left out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_of
from harness.files import parse_json
from harness.foreign.columns import Columns, as_key
from harness.foreign.mapping import Cell, Costs, ScoreColumn
from harness.foreign.mapping import Mapping as Meaning
from harness.plugins import AXIS_FOLDER
from harness.records.scale import Scale
from harness.records.trial import (
    CostRecord,
    CurvePoint,
    Evaluation,
    ModelRef,
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
from harness.space import Scalar

if TYPE_CHECKING:
    import pandas as pd

_LOGGED = ("parameters", "width", "vocab", "rows", "prompt_chars", "completion_chars")
"""Facts that are counts: kept as decadic logarithms, as `model_features` and `task_features` have them."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What became of a table."""

    results: tuple[TrialResult, ...]
    tasks: Mapping[str, Mapping[str, float | str]]
    models: Mapping[str, Mapping[str, float | str]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason to number of rows."""
    repeated: int = 0
    """Runs that are alike in everything that the mapping names, and count as repetitions."""


def build(table: pd.DataFrame, meaning: Meaning, name: str) -> Built:
    """Records of the runs of a table.

    Args:
        table: A row per run, or per run and time.
        meaning: What its columns mean.
        name: Under which the runs are imported: stands in their provenance, and keeps them apart from others' runs.

    Raises:
        SpecError: When a column is missing or holds something else than it must.
    """
    columns = Columns(table)
    rows = _rows(columns, meaning, name)
    runs = _runs(rows)
    furthest = {task: max(row.at or 0.0 for row in rows if row.task == task) for task in {row.task for row in rows}}
    # where most runs end without a score, scores were taken now and then, and the last one is the run's
    ends_scored = sum(own[-1].scores[0] is not None for own in runs.values()) >= len(runs) / 2
    results: dict[str, TrialResult] = {}
    left_out: Counter[str] = Counter()
    for (_, repetition), own in runs.items():
        result = _result(_Run(own, repetition, furthest[own[-1].task], ends_scored), meaning, name)
        if isinstance(result, str):
            left_out[result] += len(own)
        else:
            results.setdefault(result.config.key, result)
    for base in _bases(rows, meaning, name):
        results.setdefault(base.config.key, base)
    return Built(
        results=tuple(results.values()),
        tasks=_facts(columns, meaning.task_facts, [row.task for row in rows]),
        models=_facts(columns, meaning.model_facts, [row.base_model for row in rows]),
        left_out=dict(left_out),
        repeated=sum(repetition > 0 for _, repetition in runs),
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row, read by the mapping."""

    task: str
    base_model: str
    stage: Stage
    steps: int
    at: float | None
    seed: int | None
    status: str | None
    scores: tuple[float | None, ...]
    stderrs: tuple[float | None, ...]
    bases: tuple[float | None, ...]
    costs: Mapping[str, float | None]
    hardware: str
    started_at: str

    @property
    def identity(self) -> tuple[object, ...]:
        """What rows of one run have in common."""
        own = self.stage
        axes = (own.method, own.objective, own.retention, own.curation)
        return (self.task, self.base_model, *axes, *own.params.items(), self.steps, self.seed)


def _rows(columns: Columns, meaning: Meaning, name: str) -> list[_Row]:
    texts = {axis: columns.texts(getattr(meaning, axis), axis) for axis in ("task", "base_model", *AXIS_FOLDER)}
    params = {key: columns(cell, f"params.{key}") for key, cell in meaning.params.items()}
    steps = columns.numbers(meaning.steps, "steps")
    at, seeds = columns.numbers(meaning.at, "at"), columns.numbers(meaning.seed, "seed")
    for place, (count, method) in enumerate(zip(steps, texts["method"], strict=True), 1):
        if count is not None and count < 1 and method != "none":
            raise SpecError(f"steps: a run must have at least 1, but row {place} has {count:g}: name another column")
    statuses = columns(meaning.status, "status")
    if unknown := {str(s) for s in statuses if s is not None} - {str(status) for status in TrialStatus}:
        raise SpecError("status: " + one_of("status", min(unknown), [str(status) for status in TrialStatus]))
    scores = [_scores(columns, score) for score in meaning.scores]
    costs = {key: columns.numbers(getattr(meaning.costs, key), f"costs.{key}") for key in Costs.model_fields}
    hardware, started = columns(meaning.hardware, "hardware"), columns(meaning.started_at, "started_at")
    return [
        _Row(
            task=texts["task"][i],
            base_model=texts["base_model"][i],
            stage=Stage(
                method=texts["method"][i],
                objective=texts["objective"][i],
                retention=texts["retention"][i],
                curation=texts["curation"][i],
                params=_params({key: values[i] for key, values in params.items()}),
            ),
            # without a number of steps a run is one unit of training, of which it may have come part of the way
            steps=0 if texts["method"][i] == "none" else max(1, round(steps[i] or 1)),
            at=at[i],
            seed=None if (seed := seeds[i]) is None else int(seed),
            status=statuses[i],
            scores=tuple(values[i] for values, _, _ in scores),
            stderrs=tuple(errors[i] for _, errors, _ in scores),
            bases=tuple(bases[i] for _, _, bases in scores),
            costs={key: values[i] for key, values in costs.items() if values[i] is not None},
            hardware=str(hardware[i] or ""),
            started_at=str(started[i] or ""),
        )
        for i in range(len(columns.table))
    ]


def _scores(columns: Columns, score: ScoreColumn) -> tuple[list[float | None], list[float | None], list[float | None]]:
    """Values, standard errors and the base's values, by row."""
    where = f"scores.{score.column}"
    values = columns.numbers(Cell(column=score.column), where)
    for column, valid in score.valid.items():
        allowed = {as_key(value) for value in valid}
        marks = columns.raw(column, f"{where}.valid")
        values = [v if m is not None and as_key(m) in allowed else None for v, m in zip(values, marks, strict=True)]
    errors = columns.numbers(Cell(column=score.stderr) if score.stderr else None, f"{where}.stderr")
    return values, errors, columns.numbers(score.base, f"{where}.base")


def _params(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """Parameters by name; one whose value is an object of JSON, such as an adapter's config, is several: `config.r`."""
    params: dict[str, Scalar] = {}
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("{"):
            with suppress(ValueError):
                value = parse_json(value)
        if isinstance(value, dict):
            params |= _params({f"{name}.{key}": inner for key, inner in value.items()})
        elif value is not None:
            params[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return params


@dataclass(frozen=True)
class _Run:
    """The rows of one run, in the order of their times."""

    rows: Sequence[_Row]
    repetition: int
    """How many runs alike in everything came before it."""
    furthest: float
    """How far the runs of its task came at most."""
    ends_scored: bool
    """Whether runs of this table end with a score, unless something went wrong."""

    @property
    def last(self) -> _Row:
        """Where it ended."""
        return self.rows[-1]

    @property
    def scored(self) -> list[_Row]:
        """Its rows that have the score that runs are judged by."""
        return [row for row in self.rows if row.scores[0] is not None]

    @property
    def status(self) -> TrialStatus | None:
        """How it ended, None where nothing says so."""
        if self.last.status:
            return TrialStatus(self.last.status)
        if not self.scored:
            return None
        if self.ends_scored and self.last.scores[0] is None:
            return TrialStatus.DIVERGED
        return TrialStatus.COMPLETE if self.share_of(self.last) == 1 else TrialStatus.PRUNED

    def share_of(self, row: _Row) -> float:
        """How far it had come at a row, as share of the full training."""
        return row.at / self.furthest if row.at is not None and self.furthest > 0 else 1.0

    @property
    def seed(self) -> int:
        """Its own, or one made up for runs that are alike."""
        own = self.last.seed or 0
        return derive_seed("repetition", own, self.repetition) if self.repetition else own


def _runs(rows: Sequence[_Row]) -> dict[tuple[tuple[object, ...], int], list[_Row]]:
    """Rows by run. A second row of a run at the same time is of a run that is alike."""
    runs: dict[tuple[tuple[object, ...], int], list[_Row]] = {}
    seen: Counter[tuple[object, ...]] = Counter()
    for row in rows:
        moment = (row.identity, row.at)
        runs.setdefault((row.identity, seen[moment]), []).append(row)
        seen[moment] += 1
    return {run: sorted(own, key=lambda row: row.at or 0.0) for run, own in runs.items()}


def _result(run: _Run, meaning: Meaning, name: str) -> TrialResult | str:
    """The record of one run, or why there is none."""
    last, status = run.last, run.status
    if status is None or (status.has_scores and not run.scored):
        return f"no {meaning.scores[0].column}, and no status that says why"
    config = TrialConfig(
        pipeline=Pipeline(ModelRef(last.base_model, name), (last.stage,)),
        task=TaskRef(last.task, name),
        steps=last.steps,
        fidelity=run.share_of(last) if status is TrialStatus.PRUNED and run.share_of(last) > 0 else 1.0,
        seed=run.seed,
        evaluation=Evaluation(split=meaning.scores[0].split, off_target=_off_target(meaning, name)),
    )
    ways = {TrialStatus.COMPLETE: "", TrialStatus.DIVERGED: "its scores end before it does"}
    return TrialResult(
        config=config,
        status=status,
        reason=f"as {name} says"
        if last.status and status is not TrialStatus.COMPLETE
        else ways.get(status, "it ends early"),
        scores=tuple(_score_records(run.scored[-1], meaning, name)) if status.has_scores else (),
        curve=tuple(_curve(run)) if meaning.at is not None else (),
        cost=_cost(last.costs),
        provenance=Provenance(source=name, hardware=last.hardware, started_at=last.started_at),
    )


def _off_target(meaning: Meaning, name: str) -> tuple[TaskRef, ...]:
    return tuple(TaskRef(task, name) for task in dict.fromkeys(s.task for s in meaning.scores if s.task))


def _score_records(row: _Row, meaning: Meaning, name: str, base: bool = False) -> Iterator[Score]:
    values = row.bases if base else row.scores
    for score, value, stderr in zip(meaning.scores, values, row.stderrs, strict=True):
        if value is not None:
            metric = score.metric or score.column
            yield Score(
                task=score.task or row.task,
                split=score.split,
                metric=metric,
                value=value,
                stderr=None if base else stderr,
                n=score.items,
                higher_is_better=score.higher_is_better,
                comparability=f"{name}/{score.task or row.task}/{metric}/{score.split}",
                chance=score.chance,
                scale=Scale(low=score.low, high=score.high),
            )


def _curve(run: _Run) -> Iterator[CurvePoint]:
    for row in run.scored:
        share = run.share_of(row)
        yield CurvePoint(
            fraction=share,
            step=round(share * row.steps),
            train_seconds=row.costs.get("train_s") or 0.0,
            tokens=int(row.costs.get("tokens") or 0),
            loss=None,
            score=row.scores[0],
        )


def _cost(costs: Mapping[str, float | None]) -> CostRecord:
    seconds: dict[str, float] = {}
    train, total = costs.get("train_s"), costs.get("total_s")
    if train is not None:
        seconds["train"] = train
    if total is not None:
        # what is not training is not told apart; a run cannot have trained for longer than it took
        seconds = {"train": train, "other": max(0.0, total - train)} if train is not None else {"train": total}
    known = {key: value for key, value in costs.items() if key not in ("train_s", "total_s") and value is not None}
    whole = ("peak_memory_bytes", "tokens", "trainable_params", "total_params", "artifact_bytes")
    return CostRecord(seconds=seconds, **{k: round(v) if k in whole else v for k, v in known.items()})  # type: ignore[arg-type]


def _bases(rows: Sequence[_Row], meaning: Meaning, name: str) -> Iterator[TrialResult]:
    """A record of each base model on each task, where the mapping gives its scores."""
    first: dict[tuple[str, str], _Row] = {}
    for row in rows:
        known = first.setdefault((row.base_model, row.task), row)
        for score, own, other in zip(meaning.scores, row.bases, known.bases, strict=True):
            if own != other:
                raise SpecError(
                    f"scores.{score.column}.base: a base model must have one score on a task, but {row.base_model} has {other} "
                    f"and {own} on {row.task}: name the column of the untuned model's score, or leave it out"
                )
    for row in first.values():
        if any(value is not None for value in row.bases):
            config = TrialConfig(
                pipeline=Pipeline(ModelRef(row.base_model, name), (Stage(method="none"),)),
                task=TaskRef(row.task, name),
                steps=0,
                evaluation=Evaluation(split=meaning.scores[0].split, off_target=_off_target(meaning, name)),
            )
            yield TrialResult(
                config=config,
                status=TrialStatus.COMPLETE,
                scores=tuple(_score_records(row, meaning, name, base=True)),
                provenance=replace(Provenance(), source=name),
            )


def _facts(columns: Columns, cells: Any, of: Sequence[str]) -> dict[str, dict[str, float | str]]:
    """By name, what is known of it; where rows differ, the median of numbers and the most frequent text."""
    facts: dict[str, dict[str, float | str]] = {}
    for fact in type(cells).model_fields:
        cell = getattr(cells, fact)
        if cell is None:
            continue
        values: dict[str, list[Any]] = {}
        for name, value in zip(of, columns(cell, f"facts.{fact}"), strict=True):
            if value is not None:
                values.setdefault(name, []).append(value)
        for name, own in values.items():
            facts.setdefault(name, {}).update(_fact(fact, own))
    return facts


def _fact(name: str, values: Sequence[Any]) -> dict[str, float | str]:
    if name in ("type", "output_type", "domain"):
        return {name: str(Counter(values).most_common(1)[0][0])}
    value = sorted(float(v) for v in values)[len(values) // 2]
    return {f"log_{name}": math.log10(max(1.0, value))} if name in _LOGGED else {name: value}
