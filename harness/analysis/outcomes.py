"""What is measured of trials, as pure functions of scores and numbers; each says what it gives for nothing.

Absent is not zero: where there is nothing to measure the answer is None or an empty array, never 0. Gain and forgetting
are the database's views (`database.schema`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def simple_regret(best: float, chosen: float) -> float:
    """Best known score minus the chosen pipeline's; 0 where the choice beats what was known.

    Args:
        best: Best score on record, higher = better.
        chosen: Score of the pipeline that was chosen, in the same unit and direction.
    """
    return max(0.0, best - chosen)


def normalized_regret(best: float, chosen: float, base: float) -> float | None:
    """Simple regret as a share of what was to be gained over the base.

    Args:
        best: Best score on record, higher = better.
        chosen: Score of the pipeline that was chosen.
        base: Score of the base model.

    Returns:
        At least 0; above 1 where the choice is worse than the base. None when nothing was to be gained (best <= base).
    """
    return simple_regret(best, chosen) / (best - base) if best > base else None


def backward_transfer(just_after: Sequence[float], final: Sequence[float]) -> float | None:
    """Mean of final score minus score just after learning, over the tasks of a sequence; negative = forgotten.

    Lopez-Paz and Ranzato 2017, arXiv:1706.08840, equation 3.

    Args:
        just_after: Score on each task right after it was learned, higher = better; without the last task, which is
            learned at the end and cannot be forgotten.
        final: Score on each of these tasks at the end of the sequence.

    Returns:
        In score units; None for an empty sequence.

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
    # NaN compares false with everything, so a point with one would dominate nothing and never be dominated.
    values: NDArray[np.float64] = np.nan_to_num(
        np.asarray(points, dtype=float), nan=np.inf, posinf=np.inf, neginf=-np.inf
    )
    if values.size == 0:
        return np.zeros(len(values), dtype=bool)
    on_frontier = np.ones(len(values), dtype=bool)
    # One pass per point needs memory for n rows; comparing all pairs at once would need n squared.
    for index, point in enumerate(values):
        on_frontier[index] = not np.any((values <= point).all(axis=1) & (values < point).any(axis=1))
    return on_frontier


def curve_area(fractions: Sequence[float], scores: Sequence[float]) -> float | None:
    """Mean height of a learning curve over the fractions that it covers: its trapezoids' area over their span.

    Args:
        fractions: Shares of the training budget at which the curve was scored, rising.
        scores: One per fraction.

    Returns:
        In score units; the score itself for one point, None for none.

    Raises:
        ValueError: When fractions do not rise or lengths differ.
    """
    if len(fractions) != len(scores) or np.any(np.diff(fractions) <= 0):
        raise ValueError(f"fractions must rise, one per score, but got {list(fractions)} for {len(scores)} scores")
    if len(scores) < 2:
        return scores[0] if scores else None
    return float(np.trapezoid(scores, fractions) / (fractions[-1] - fractions[0]))
