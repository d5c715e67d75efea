"""What is measured of trials, as pure functions of scores and numbers; each says what it gives for nothing.

Absent is not zero: where there is nothing to measure the answer is None or an empty array, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.records.trial import Score

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class SuiteForgetting:
    """Forgetting over an off-target suite."""

    worst: float
    mean: float
    worst_task: str


def gain(base: Score, tuned: Score) -> float:
    """How much better than the base, in score units; positive = better, also for losses.

    Raises:
        ValueError: When the two may not be compared.
    """
    _check_comparable(base, tuned)
    return tuned.value - base.value if tuned.higher_is_better else base.value - tuned.value


def forgetting(base: Score, tuned: Score) -> float:
    """How much was lost, in score units; positive = lost, also for losses.

    Raises:
        ValueError: When task, split, metric or comparability key differ.
    """
    return 0.0 - gain(base, tuned)


def suite_forgetting(base: Sequence[Score], tuned: Sequence[Score]) -> SuiteForgetting | None:
    """Worst and mean forgetting over a suite; None when no score has a comparable base score.

    Points of accuracy and nats do not add up: where the suite has scores for which higher is better, only these
    count; else its losses. The database's view `worst_forgetting` says the same.
    """
    bases = {_identity(score): score for score in base}
    pairs = [(bases[_identity(score)], score) for score in tuned if _identity(score) in bases]
    kind = any(score.higher_is_better for _, score in pairs)
    lost = [(forgetting(old, new), new.task) for old, new in pairs if new.higher_is_better is kind]
    if not lost:
        return None
    worst, task = max(lost)
    return SuiteForgetting(worst, float(np.mean([value for value, _ in lost])), task)


def simple_regret(best: float, chosen: float) -> float:
    """Best known minus chosen, both with higher = better; 0 where the choice beats what was known."""
    return max(0.0, best - chosen)


def normalized_regret(best: float, chosen: float, base: float) -> float | None:
    """Simple regret as share of what was to be gained over the base; None when nothing was (best <= base)."""
    return simple_regret(best, chosen) / (best - base) if best > base else None


def backward_transfer(just_after: Sequence[float], final: Sequence[float]) -> float | None:
    """Mean of final score minus score just after learning, over the tasks of a sequence; negative = forgotten.

    Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 3. None for an empty sequence; the last task of a sequence,
    learned at the end, is left out by the caller. Both with higher = better.

    Raises:
        ValueError: When the lengths differ.
    """
    if len(just_after) != len(final):
        raise ValueError(f"each task needs both scores, but got {len(just_after)} and {len(final)}")
    return float(np.mean(np.subtract(final, just_after))) if len(final) else None


def frontier(points: ArrayLike) -> NDArray[np.bool_]:
    """Which points no other point dominates.

    Args:
        points: Shape (n, k), every column with lower = better; NaN counts as worst.

    Returns:
        Mask of shape (n,); equal points are all kept. Empty for n = 0.
    """
    values: NDArray[Any] = np.nan_to_num(np.asarray(points, dtype=float), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    if values.size == 0:
        return np.zeros(len(values), dtype=bool)
    kept = np.ones(len(values), dtype=bool)
    for index, point in enumerate(values):
        kept[index] = not np.any((values <= point).all(axis=1) & (values < point).any(axis=1))
    return kept


def curve_area(fractions: Sequence[float], scores: Sequence[float]) -> float | None:
    """Mean height of a learning curve over the fractions it covers (trapezoids over their span), in score units.

    One point gives its score; none gives None.

    Raises:
        ValueError: When fractions do not rise or lengths differ.
    """
    if len(fractions) != len(scores) or np.any(np.diff(fractions) <= 0):
        raise ValueError(f"fractions must rise, one per score, but got {list(fractions)} for {len(scores)} scores")
    if len(scores) < 2:
        return scores[0] if scores else None
    return float(np.trapezoid(scores, fractions) / (fractions[-1] - fractions[0]))


def _identity(score: Score) -> tuple[str, str, str, str]:
    return score.task, score.split, score.metric, score.comparability


def _check_comparable(base: Score, tuned: Score) -> None:
    if _identity(base) != _identity(tuned):
        raise ValueError(
            f"only scores of one task, split, metric and comparability key can be compared, but got {_identity(base)} "
            f"and {_identity(tuned)}: score the base again the same way"
        )
