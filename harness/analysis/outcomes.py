"""What is measured of trials, as pure functions of scores and numbers; each says what it gives for nothing.

Absent is not zero: where there is nothing to measure the answer is None or an empty array, never 0. Gain and forgetting
are the database's views (`database.schema`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


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
