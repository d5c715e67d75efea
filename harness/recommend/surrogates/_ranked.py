"""What the regressors on normal scores have in common: each is a mean of members with an honest spread."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.recommend.surrogates._ranks import Ranks
from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEW = 6
"""Rows below which nothing is fitted, and all candidates are expected to do as the rows did."""


class Ranked(Surrogate, ABC):
    """The mean of its members, each fitted to the normal scores of the targets."""

    @abstractmethod
    def members(self) -> Sequence[Any]:
        """Unfitted regressors, as scikit-learn has them."""

    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Learn normal scores.

        Args:
            x: Features, shape (n, columns).
            y: Targets, shape (n,).
        """
        import numpy as np

        self._ranks = Ranks.of(y)
        scores = self._ranks.scored(y)
        self._members = [member.fit(x, scores) for member in self.members()] if len(y) >= FEW and x.shape[1] else []
        self._middle = float(scores.mean())
        # of rows that a member did not see: those that it was fitted to say nothing of how far it is off
        missed = [error for member in self._members if (error := _missed(member)) is not None]
        self._spread = min(missed, default=float(np.std(scores)))

    def predict(self, x: NDArray[np.float64], coverage: float) -> Prediction:
        """Mean normal score, and as much around it as members miss of rows that they did not see.

        Args:
            x: Features of candidates, shape (m, columns).
            coverage: Of the interval, in (0, 1).
        """
        import numpy as np
        from scipy.special import ndtri

        scores = np.full(len(x), self._middle)
        if self._members and len(x):
            scores = np.mean([member.predict(x) for member in self._members], axis=0)
        half = float(ndtri((1 + coverage) / 2)) * self._spread
        return Prediction(*(self._ranks.back(scores + by) for by in (0.0, -half, half)))


def _missed(member: Any) -> float | None:
    """Root mean squared error on rows left out while fitting, where the regressor measures that."""
    last = member[-1] if hasattr(member, "steps") else member
    if hasattr(last, "best_score_"):  # ridge: minus the mean squared error, each row left out in turn
        return float((-last.best_score_) ** 0.5)
    return None


def ridge() -> Any:
    """Ridge regression on standardised columns, its penalty by leaving each row out; Golub, Heath and Wahba 1979, Technometrics."""
    import numpy as np
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 3, 9)))
