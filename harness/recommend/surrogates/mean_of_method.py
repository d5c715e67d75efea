"""Baseline: a pipeline does as well as those with the same choices on all axes did on average."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHOICE = re.compile(r"stage\d+\.(method|objective|retention|curation)=")


class MeanOfMethod(Surrogate):
    """Mean and quantiles of what had the same choices; of everything where nothing had."""

    summary = "A pipeline does as well as those with the same choices did on average."
    baseline = True

    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Group the targets by choices.

        Args:
            x: Features, shape (n, columns).
            y: Targets, shape (n,).
        """
        self._choices = [index for index, column in enumerate(self.columns) if CHOICE.match(column)]
        self._seen: dict[bytes, list[float]] = {}
        self._all = y
        for row, target in zip(x[:, self._choices], y, strict=True):
            # Rows of zeros and ones: equal bytes are equal choices.
            self._seen.setdefault(row.tobytes(), []).append(float(target))

    def predict(self, x: NDArray[np.float64], coverage: float) -> Prediction:
        """The same for every candidate with the same choices.

        Args:
            x: Features, shape (m, columns).
            coverage: Of the interval, in (0, 1).
        """
        import numpy as np

        ends = [(1 - coverage) / 2, (1 + coverage) / 2]
        groups = [self._seen.get(row.tobytes(), self._all) for row in x[:, self._choices]]
        mean = np.array([np.mean(group) for group in groups])
        interval = np.array([np.quantile(group, ends) for group in groups]).reshape(len(x), 2)
        return Prediction(mean, interval[:, 0], interval[:, 1])
