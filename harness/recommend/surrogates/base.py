"""The author's contract for a surrogate: a model of what untried pipelines would do.

One file per surrogate; its stem is its name. Columns are those of `features.Encoder`: `name` holds numbers,
`name=category` zeros and ones. The same data and seed give the same answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Plugin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """What is expected of candidates."""

    mean: NDArray[np.float64]
    """Shape (n,)."""
    low: NDArray[np.float64]
    """Lower end of the interval, shape (n,)."""
    high: NDArray[np.float64]
    """Upper end, shape (n,)."""


class Surrogate(Plugin, ABC):
    """Learns one number per trial from its features."""

    baseline: ClassVar[bool] = False
    """Whether it is there to be beaten: it must lose the backtest before a recommendation rests on anything else."""

    def __init__(self, columns: Sequence[str], seed: int = 0) -> None:
        self.columns, self.seed = tuple(columns), seed

    @abstractmethod
    def fit(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Learn.

        Args:
            x: Features, shape (n, columns), n >= 1.
            y: Targets, shape (n,).
        """

    @abstractmethod
    def predict(self, x: NDArray[np.float64], coverage: float) -> Prediction:
        """Mean and central interval, as far as the model knows.

        Args:
            x: Features of candidates, shape (m, columns).
            coverage: Of the interval, in (0, 1).
        """
