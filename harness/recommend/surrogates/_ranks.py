"""Targets by their ranks, for surrogates that learn better where a few disasters do not drown all the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranks:
    """A rising map between targets and normal scores (Salinas, Shen and Perrone 2020, arXiv:1909.13595, section 4)."""

    values: NDArray[np.float64]
    """Targets seen, each once, rising."""
    scores: NDArray[np.float64]
    """Their normal scores: the mean over equal targets."""

    @classmethod
    def of(cls, y: NDArray[np.float64]) -> Ranks:
        """The map that makes targets look normally distributed.

        Args:
            y: Targets, shape (n,), n >= 1.
        """
        import numpy as np
        from scipy.special import ndtri

        values, counts = np.unique(y, return_counts=True)
        below = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return cls(values, ndtri((below + counts / 2) / len(y)))

    def scored(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Targets as normal scores.

        Args:
            y: Any shape.
        """
        import numpy as np

        return np.interp(y, self.values, self.scores)

    def back(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Normal scores as targets; beyond those seen the outermost, since nothing is known there.

        Args:
            scores: Any shape.
        """
        import numpy as np

        return np.interp(scores, self.scores, self.values)
