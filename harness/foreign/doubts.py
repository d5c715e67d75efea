"""What looks wrong in a table of runs: directions, units and scales that its own numbers contradict.

A mapping file can say the opposite of what a column holds, and nothing later would notice: every advice would be turned
round, or off by a thousand. So the columns are held against each other, and against what is possible at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from harness.foreign.mapping import Mapping, ScoreColumn

if TYPE_CHECKING:
    from harness.records.trial import Score, TrialResult

BYTES_PER_PARAMETER = (0.3, 1000.0)
"""Peak memory for each of a model's parameters: four bits is the least that is in use; the most is a tiny model's long rows."""
SECONDS_PER_STEP = (1e-5, 3600.0)
TOKENS_PER_SECOND = (0.05, 1e7)
LEAST = 8
"""Runs, or points of a curve, from which a tendency is taken."""
CLEAR = 0.5
"""Rank correlation from which two columns contradict each other."""


@dataclass(frozen=True)
class Doubt:
    """Something that contradicts the mapping."""

    column: str
    text: str
    """The rule, what was found, and the remedy."""


def doubts(results: Sequence[TrialResult], meaning: Mapping) -> list[Doubt]:
    """Everything that looks wrong, apart from columns that the mapping is sure of.

    Args:
        results: Records as the mapping gives them, base models included.
        meaning: The mapping.
    """
    runs = [result for result in results if result.config.steps > 0]
    found = [
        *_off_scale(results, meaning),
        *_named(meaning),
        *_directions(runs, results, meaning),
        *_units(runs, meaning),
    ]
    first = {doubt.column: doubt for doubt in reversed(found)}
    return [doubt for column, doubt in reversed(first.items()) if column not in meaning.sure]


_NAMED = {
    True: ("acc", "accuracy", "f1", "match", "bleu", "rouge", "reward", "auc", "pass", "mcc"),
    False: ("loss", "perplexity", "ppl", "nll", "error", "wer", "bits"),
}
"""Words in names of columns whose direction everybody means the same way: enough to ask, never to decide."""


def _named(meaning: Mapping) -> Iterator[Doubt]:
    for score in meaning.scores:
        words = re.split(r"[^a-z0-9]+", f"{score.column} {score.metric or ''}".lower())
        against = [word for word in words if word in _NAMED[not score.higher_is_better]]
        if against and not any(word in _NAMED[score.higher_is_better] for word in words):
            usual = "lower" if score.higher_is_better else "higher"
            yield Doubt(
                score.column,
                f"of {against[0]} {usual} is usually better, but {score.column} says higher_is_better: "
                f"{str(score.higher_is_better).lower()}: correct it, or list {score.column} under `sure`",
            )


def _values(results: Sequence[TrialResult], score: ScoreColumn) -> Iterator[tuple[TrialResult, Score]]:
    for result in results:
        for own in result.scores:
            task = score.task or result.config.task.name
            if (own.task, own.metric) == (task, score.metric or score.column):
                yield result, own


def _off_scale(results: Sequence[TrialResult], meaning: Mapping) -> Iterator[Doubt]:
    for score in meaning.scores:
        for result, own in _values(results, score):
            if own.scale and not own.scale.holds(own.value):
                yield Doubt(
                    score.column,
                    f"{score.column} must lie from {score.low} to {score.high}, but is {own.value:g} on {result.config.task.name}: "
                    "correct `low` and `high`, or leave such rows out with `valid`",
                )
                break


def _directions(runs: Sequence[TrialResult], results: Sequence[TrialResult], meaning: Mapping) -> Iterator[Doubt]:
    main = meaning.scores[0]
    towards = 1 if main.higher_is_better else -1
    word = "higher" if main.higher_is_better else "lower"
    remedy = f"correct `higher_is_better`, or list {main.column} under `sure`"
    some = runs[:: max(1, len(runs) // 200)]  # enough to see which way most of them go
    curves = [[point.score for point in run.curve if point.score is not None] for run in some]
    rises = [towards * _rank_correlation(range(len(c)), c) for c in curves if len(c) >= LEAST]
    if len(rises) >= LEAST and sum(rise < -CLEAR for rise in rises) > len(rises) / 2:
        yield Doubt(
            main.column,
            f"{word} {main.column} should be better, but most runs get worse the longer they train: {remedy}",
        )
    base = {
        (r.config.pipeline.base_model.name, r.config.task.name): r.target.value
        for r in results
        if r.config.steps == 0 and r.target
    }
    gains = [
        towards * (run.target.value - base[pair])
        for run in runs
        if run.target and (pair := (run.config.pipeline.base_model.name, run.config.task.name)) in base
    ]
    if len(gains) >= LEAST and sum(gain < 0 for gain in gains) > 0.75 * len(gains):
        yield Doubt(
            main.column,
            f"{word} {main.column} should be better, but {sum(g < 0 for g in gains)} of {len(gains)} runs are worse than the "
            f"untuned base: {remedy}",
        )
    for other in meaning.scores[1:]:
        if other.task is None:  # another measure of the same task
            pairs = [
                (towards * run.target.value, (1 if other.higher_is_better else -1) * own.value)
                for run, own in _values(runs, other)
                if run.target
            ]
            if len(pairs) >= LEAST and _rank_correlation(*zip(*pairs, strict=True)) < -CLEAR:
                yield Doubt(
                    other.column,
                    f"{main.column} and {other.column} should agree, but runs that are better by one are worse by the other: "
                    f"correct `higher_is_better` of one, or list {other.column} under `sure`",
                )


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; 0 where one of them does not move."""
    from scipy.stats import spearmanr

    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    return float(spearmanr(one, other).statistic)


def _units(runs: Sequence[TrialResult], meaning: Mapping) -> Iterator[Doubt]:
    costs = meaning.costs

    def column(name: str) -> str:
        cell = getattr(costs, name)
        return (cell.column or name) if cell else name

    def ratio(
        name: str, rule: str, of: Callable[[TrialResult], float | None], ends: tuple[float, float]
    ) -> Iterator[Doubt]:
        values = [value for run in runs if (value := of(run)) is not None]
        if values and not ends[0] <= (middle := median(values)) <= ends[1]:
            yield Doubt(
                column(name),
                f"{column(name)} must give {ends[0]:g} to {ends[1]:g} {rule}, but in the middle run gives {middle:.3g}: "
                f"say its `unit`, or list it under `sure`",
            )

    yield from ratio("train_s", "seconds a step", _seconds_per_step, SECONDS_PER_STEP)
    yield from ratio("tokens", "tokens a second", _tokens_per_second, TOKENS_PER_SECOND)
    yield from ratio("peak_memory_bytes", "bytes for each parameter of the model", _bytes_each, BYTES_PER_PARAMETER)
    yield from ratio("peak_memory_bytes", "bytes", lambda run: run.cost.peak_memory_bytes, (1e7, 1e14))
    longer = [run for run in runs if "other" in run.cost.seconds and run.cost.seconds["other"] == 0.0]
    if costs.train_s and costs.total_s and len(longer) > len(runs) / 20:
        yield Doubt(
            column("train_s"),
            f"{column('train_s')} must be at most {column('total_s')}, but is longer in {len(longer)} runs: say the `unit` of both",
        )
    more = [run for run in runs if 0 < run.cost.total_params < run.cost.trainable_params]
    if more:
        yield Doubt(
            column("trainable_params"),
            f"{column('trainable_params')} must be at most {column('total_params')}, but is more in {len(more)} runs: say the `unit`",
        )


def _seconds_per_step(run: TrialResult) -> float | None:
    seconds, steps = run.cost.seconds.get("train"), run.config.steps_run
    return seconds / steps if seconds and steps > 1 else None


def _tokens_per_second(run: TrialResult) -> float | None:
    seconds = run.cost.seconds.get("train")
    return run.cost.tokens / seconds if seconds and run.cost.tokens else None


def _bytes_each(run: TrialResult) -> float | None:
    peak, parameters = run.cost.peak_memory_bytes, run.cost.total_params
    return peak / parameters if peak and parameters else None
