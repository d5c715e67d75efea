"""What the baselines have in common that expect of a pipeline what those like it did."""

from __future__ import annotations

import re
from abc import ABC
from typing import TYPE_CHECKING, ClassVar

from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class MeanOfAlike(Surrogate, ABC):
    """Mean and quantiles of what is equal in some columns; of everything where nothing is."""

    baseline = True
    alike: ClassVar[re.Pattern[str]]
    """Matches the columns that must be equal."""

    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Group the targets by what is alike.

        Args:
            x: Features, shape (n, columns).
            y: Targets, shape (n,).
        """
        self._compared = [index for index, column in enumerate(self.columns) if self.alike.match(column)]
        self._seen: dict[bytes, list[float]] = {}
        self._all = y
        for row, target in zip(x[:, self._compared], y, strict=True):
            # Bytes that are equal are numbers that are equal, since all come from one encoder.
            self._seen.setdefault(row.tobytes(), []).append(float(target))

    def predict(self, x: NDArray[np.float64], coverage: float) -> Prediction:
        """The same for all candidates that are alike.

        Args:
            x: Features of candidates, shape (m, columns).
            coverage: Of the interval, in (0, 1).
        """
        import numpy as np

        ends = [(1 - coverage) / 2, (1 + coverage) / 2]
        groups = [self._seen.get(row.tobytes(), self._all) for row in x[:, self._compared]]
        mean = np.array([np.mean(group) for group in groups])
        interval = np.array([np.quantile(group, ends) for group in groups]).reshape(len(x), 2)
        return Prediction(mean, interval[:, 0], interval[:, 1])
