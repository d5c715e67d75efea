"""What surrogates learn from: each pipeline once, however often it ran, and runs whose base model nobody scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from harness.recommend.features import Observation, room

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 4000
"""Lessons that are learned from at most: with more, tasks give equal shares of them."""
LARGEST = 3.0
"""Difference from the middle run, in units of what there is to gain, from which more makes no difference."""

_Cell = tuple[str, str, str, str]


def lessons(seen: Sequence[Observation]) -> list[Observation]:
    """Each pipeline once, with means over its runs: what ran often is not better known than what is good.

    Args:
        seen: All observations.

    Returns:
        At most `MOST`, in the order of the first run of each. Keys are hashes, so those with the lowest are a fair choice.
    """
    runs: dict[tuple[str, str, str, float], list[Observation]] = {}
    for o in seen:
        runs.setdefault((o.pipeline, o.comparability, o.split, o.candidate.fidelity), []).append(o)
    means = [_mean(own) for own in runs.values()]
    if len(means) <= MOST:
        return means
    tasks: dict[str, list[Observation]] = {}
    for o in sorted(means, key=lambda o: o.key):
        tasks.setdefault(o.task, []).append(o)
    kept: set[str] = set()
    left = MOST
    for place, own in enumerate(sorted(tasks.values(), key=len)):  # what small tasks leave, large ones may have
        some = own[: left // (len(tasks) - place)]
        kept |= {o.key for o in some}
        left -= len(some)
    return [o for o in means if o.key in kept]


def _mean(runs: Sequence[Observation]) -> Observation:
    if len(runs) == 1:
        return runs[0]

    def over(of: Callable[[Observation], float | None]) -> float | None:
        known = [value for run in runs if (value := of(run)) is not None]
        return float(np.mean(known)) if known else None

    return replace(
        runs[0],
        score=float(np.mean([run.score for run in runs])),
        gain=over(lambda o: o.gain),
        forgetting=over(lambda o: o.forgetting),
        seconds=over(lambda o: o.seconds),
        memory_bytes=over(lambda o: o.memory_bytes),
    )


def completed(
    seen: Sequence[Observation], expected: Callable[[Sequence[int]], NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Gains of all observations, for surrogates to learn: also of those without a base score or a declared best value.

    How such runs compare with each other on their task is known; at what level they lie is not. They get the level that is
    expected of them from the runs that have gains.

    Args:
        seen: n lessons.
        expected: Gains that are expected of some of them, by index; only asked where some lessons have a gain.

    Returns:
        Shape (n,); NaN for what is alone on its task.
    """
    gains = np.array([np.nan if o.gain is None else o.gain for o in seen])
    anchored = bool((~np.isnan(gains)).any())
    for own in _cells(seen):
        if not np.isnan(gains[own]).any():
            continue
        effects = _effects([seen[i] for i in own])
        if effects is not None:
            level = float(np.mean(expected(own))) - float(np.mean(effects)) if anchored else 0.0
            gains[own] = np.where(np.isnan(gains[own]), effects + level, gains[own])
    return gains


def _cells(seen: Sequence[Observation]) -> Iterator[list[int]]:
    """Indices of observations that may be ranked against each other."""
    cells: dict[_Cell, list[int]] = {}
    for index, o in enumerate(seen):
        cells.setdefault((o.task, o.base_model, o.comparability, o.split), []).append(index)
    yield from cells.values()


def _effects(own: Sequence[Observation]) -> NDArray[np.float64] | None:
    """How much better than the middle one each run of a cell is, as share of what there is to gain from there.

    Where no best value is declared, the best run known stands for it. None where there is nothing to compare.
    """
    sign = 1 if own[0].candidate.higher_is_better else -1
    scores = sign * np.array([o.score for o in own])
    middle = median(scores)
    unit = room(sign * middle, own[0].candidate.higher_is_better, own[0].candidate.scale)
    if unit is None:
        unit = float(scores.max() - middle)
    if len(own) < 2 or unit <= 0:
        return None
    effects: NDArray[np.float64] = np.clip((scores - middle) / unit, -LARGEST, LARGEST)
    return effects
