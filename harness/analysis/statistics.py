"""Intervals over seeds, and the correction for having asked several questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its confidence interval; `low` and `high` are None where the data cannot give one."""

    mean: float
    low: float | None
    high: float | None
    n: int
    coverage: float = 0.95


def mean_interval(values: Sequence[float], coverage: float = 0.95) -> Interval | None:
    """Mean over seeds with Student's t interval: mean +- t(n-1) s / sqrt(n).

    Student 1908, "The probable error of a mean", Biometrika 6:1-25.

    Args:
        values: One per seed, taken to be independent and about normal.
        coverage: Of the interval, in (0, 1).

    Returns:
        None for no value; without `low` and `high` for one value.
    """
    if not len(values):
        return None
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1, coverage=coverage)
    half = _t_quantile(coverage, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, coverage=coverage)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for having asked several questions (Holm 1979, Scand. J. Statistics 6:65-70); [] for none."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        # An adjusted p-value is never below that of a question with a smaller one.
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def _t_quantile(coverage: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + coverage) / 2, degrees))
