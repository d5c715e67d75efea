"""TIES: of several models' changes, the largest that agree on a direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.retention._merging import Merging, elected, trimmed
from harness.space import Float, Text

if TYPE_CHECKING:
    from torch import Generator, Tensor


class TrimElectMerge(Merging):
    """Trims each parameter's changes to the share `merge_density`, elects a sign per weight, and averages those that have it.

    The models that `merge_with` names are tuned from the same base; their weights count in the election and in the mean
    against the trained model's 1. The result is scaled by `merge_scale`.
    """

    summary = "merges with other models: trims changes, elects signs, averages those that agree"
    paper = "Yadav et al. 2023, arXiv 2306.01708"
    requires = "other models tuned from the same base"
    needs_others = True
    space = {
        "merge_with": Text(names="models"),
        "merge_density": Float(0.01, 1.0, default=0.2),
        "merge_scale": Float(0.1, 3.0, default=1.0, searched=False),
    }

    def merged(self, vectors: Sequence[Tensor], weights: Sequence[float], setup: StageSetup, draw: Generator) -> Tensor:
        """The elected mean."""
        density, scale = setup.params.number("merge_density"), setup.params.number("merge_scale")
        return scale * elected([trimmed(vector, density) for vector in vectors], weights)
