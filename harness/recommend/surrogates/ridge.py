"""A straight line through every feature, on ranks of the targets: hard to beat where there are few runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.recommend.surrogates._ranks import Ranks
from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEW = 6
"""Rows below which nothing is fitted, and all candidates are expected to do as the rows did."""


class Ridge(Surrogate):
    """Ridge regression of normal scores on standardised columns."""

    summary = "Ridge regression on ranks, its penalty chosen by leaving each run out."
    paper = "Hoerl and Kennard 1970, Technometrics 12:55-67; Golub, Heath and Wahba 1979, Technometrics 21:215-223"

    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Learn normal scores.

        Args:
            x: Features, shape (n, columns).
            y: Targets, shape (n,).
        """
        import numpy as np
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        self._ranks = Ranks.of(y)
        scores = self._ranks.scored(y)
        self._middle, self._spread, self._line = float(scores.mean()), float(np.std(scores)), None
        if len(y) >= FEW and x.shape[1]:
            regression = RidgeCV(np.logspace(-1, 3, 9))
            self._line = make_pipeline(StandardScaler(), regression).fit(x, scores)
            self._spread = float((-regression.best_score_) ** 0.5)  # mean squared error, each row left out in turn

    def predict(self, x: NDArray[np.float64], coverage: float) -> Prediction:
        """The line, and as much around it as it misses of rows that were left out.

        Args:
            x: Features of candidates, shape (m, columns).
            coverage: Of the interval, in (0, 1).
        """
        import numpy as np
        from scipy.special import ndtri

        scores = self._line.predict(x) if self._line is not None and len(x) else np.full(len(x), self._middle)
        half = float(ndtri((1 + coverage) / 2)) * self._spread
        return Prediction(*(self._ranks.back(scores + by) for by in (0.0, -half, half)))
