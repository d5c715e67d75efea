"""DARE: changes are dropped at random, and the rest scaled up to make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.retention._merging import Merging, dropped
from harness.space import Float, Text

if TYPE_CHECKING:
    from torch import Generator, Tensor


class DropAndRescale(Merging):
    """Keeps each change with the chance `merge_density`, divided by it; other models' changes are treated alike and added."""

    summary = "drops changes of weights at random and scales up the rest"
    paper = "Yu et al. 2023, arXiv 2311.03099"
    space = {
        "merge_density": Float(0.01, 1.0, default=0.5),
        "merge_with": Text(names="models"),
    }

    def merged(self, vectors: Sequence[Tensor], weights: Sequence[float], setup: StageSetup, draw: Generator) -> Tensor:
        """The weighted sum of the vectors after dropping."""
        import torch

        density = setup.params.number("merge_density")
        remainders = [weight * dropped(vector, density, draw) for vector, weight in zip(vectors, weights, strict=True)]
        return torch.stack(remainders).sum(0)
