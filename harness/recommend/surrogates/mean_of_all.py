"""Baseline: every pipeline does as well as all did on average."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class MeanOfAll(Surrogate):
    """Mean and quantiles of everything seen."""

    summary = "Every pipeline does as well as all did on average."
    baseline = True

    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Keep the targets.

        Args:
            x: Features, shape (n, columns).
            y: Targets, shape (n,).
        """
        self._seen = y

    def predict(self, x: NDArray[np.float64], coverage: float) -> Prediction:
        """The same for every candidate.

        Args:
            x: Features, shape (m, columns).
            coverage: Of the interval, in (0, 1).
        """
        import numpy as np

        low, high = np.quantile(self._seen, [(1 - coverage) / 2, (1 + coverage) / 2])
        mean, low, high = (np.full(len(x), value) for value in (self._seen.mean(), low, high))
        return Prediction(mean=mean, low=low, high=high)
