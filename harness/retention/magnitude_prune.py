"""Magnitude pruning of the task vector: only the largest changes of each parameter are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.retention._merging import Merging, trimmed
from harness.space import Float

if TYPE_CHECKING:
    from torch import Generator, Tensor


class MagnitudePruning(Merging):
    """Sets all but the share `merge_density` of each parameter's changes back to the base, smallest first."""

    summary = "keeps only the largest changes of each parameter"
    paper = "the trimming of TIES by itself: Yadav et al. 2023, arXiv 2306.01708"
    space = {"merge_density": Float(0.01, 1.0, default=0.2)}

    def merged(self, vectors: Sequence[Tensor], weights: Sequence[float], setup: StageSetup, draw: Generator) -> Tensor:
        """The trained vector, trimmed."""
        return trimmed(vectors[0], setup.params.number("merge_density"))
