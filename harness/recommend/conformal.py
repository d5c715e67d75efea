"""Intervals for a new task: a surrogate's own, widened by how far they missed on tasks it had not seen.

Conformalized quantile regression (Romano, Patterson and Candes 2019, arXiv:1905.03222) in its cross-validated form
(CV+; Barber, Candes, Ramdas and Tibshirani 2021, arXiv:1905.02928), with whole tasks left out and every task weighing the
same however many trials it has (hierarchical conformal prediction; Lee, Barber and Willett 2023, arXiv:2306.06342). What
is exchangeable is tasks, not trials: with K tasks no interval can be calibrated beyond K / (K + 1).

What is proven is less than the nominal coverage: at 1 - alpha CV+ holds at least about 1 - 2 alpha of the time (Barber
et al. 2021, theorem 4; 60% at 80%), and that for a pipeline fixed beforehand, not for the best-looking of many. In practice
it comes near 1 - alpha; the backtest measures how near, and nothing is shown without that measurement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    from numpy.typing import NDArray

COVERAGE = 0.8
"""Of every interval that is shown: the most that a handful of tasks can support."""
FOLDS = 5
BLOCK = 256
"""Candidates that are predicted at once: each is held against every run that was left out, which takes memory for both."""


def enough_tasks(tasks: int, coverage: float = COVERAGE) -> bool:
    """Whether there are enough exchangeable tasks to calibrate intervals; it promises nothing for a new task.

    Args:
        tasks: Different tasks with observations.
        coverage: Of the intervals, in (0, 1).
    """
    return tasks / (tasks + 1) >= coverage


class Conformal:
    """A surrogate with intervals calibrated on left-out tasks."""

    def __init__(self, make: Callable[[], Surrogate], coverage: float = COVERAGE) -> None:
        self._make, self._coverage = make, coverage

    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64], groups: Sequence[str] = ()) -> None:
        """Fit on everything, and once without each fold of tasks.

        Args:
            x: Features, shape (n, columns).
            y: Targets, shape (n,).
            groups: The task of every row, length n; without them intervals are the surrogate's own.
        """
        self._full = self._fitted(x, y)
        self._held_out: list[tuple[Surrogate, NDArray[np.float64], NDArray[np.float64]]] = []
        names = sorted(set(groups))
        fold_of = {name: index % FOLDS for index, name in enumerate(names)}
        folds = np.array([fold_of[group] for group in groups])
        trials = Counter(groups)
        # The +1 is the new task's own place among the exchangeable ones: its weight lies at infinity.
        share = np.array([1 / (trials[group] * (len(names) + 1)) for group in groups])
        if len(names) < 2:
            return
        for fold in sorted(set(fold_of.values())):
            out = folds == fold
            model = self._fitted(x[~out], y[~out])
            missed = model.predict(x[out], self._coverage)
            self._held_out.append((model, np.maximum(missed.low - y[out], y[out] - missed.high), share[out]))

    def predict(self, x: NDArray[np.float64]) -> Prediction:
        """Mean of the full fit, interval from all left-out fits; with one task the surrogate's own interval.

        Args:
            x: Features, shape (m, columns).
        """
        blocks = [self._predict(x[start : start + BLOCK]) for start in range(0, max(1, len(x)), BLOCK)]
        mean, low, high = (np.concatenate([getattr(b, end) for b in blocks]) for end in ("mean", "low", "high"))
        return Prediction(mean, low, high)

    def _predict(self, x: NDArray[np.float64]) -> Prediction:
        full = self._full.predict(x, self._coverage)
        if not self._held_out or not len(x):
            return full
        lows, highs, weights = [], [], []
        for model, missed, share in self._held_out:
            predicted = model.predict(x, self._coverage)
            lows.append(predicted.low[:, None] - missed)
            highs.append(predicted.high[:, None] + missed)
            weights.append(share)
        weight = np.concatenate(weights)
        # The lower end is the upper one of the negated values, so that both are rounded away from the middle.
        low = -_weighted_quantile(-np.concatenate(lows, axis=1), weight, self._coverage)
        high = _weighted_quantile(np.concatenate(highs, axis=1), weight, self._coverage)
        # The interval comes from other fits than the mean, which therefore may lie outside it.
        return Prediction(full.mean, np.minimum(low, full.mean), np.maximum(high, full.mean))

    def _fitted(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Surrogate:
        model = self._make()
        model.fit(x, y)
        return model


def _weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Row-wise quantile of values of shape (m, n) whose weights sum to less than 1; the rest lies at infinity.

    Where the level falls into that rest the largest value is given: the widest interval that the data knows.
    """
    order = np.argsort(values, axis=1)
    cumulative = np.cumsum(weights[order], axis=1)
    # The tolerance keeps rounding of the cumulated weights from moving the quantile by a whole value.
    index = np.minimum((cumulative < level - 1e-9).sum(axis=1), values.shape[1] - 1)
    quantile: NDArray[np.float64] = np.take_along_axis(
        np.take_along_axis(values, order, axis=1), index[:, None], axis=1
    )[:, 0]
    return quantile
