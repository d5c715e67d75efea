"""L2-SP: weights are pulled back to where they started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.retention._weights import WeightPenalty
from harness.space import Float

if TYPE_CHECKING:
    from torch import Tensor


class StartingPoint(WeightPenalty):
    """Half of `pull` times the squared distance of all weights from the base's."""

    summary = "pulls all weights back to the base's with equal force"
    paper = "Li et al. 2018, arXiv 1802.01483"
    space = {"pull": Float(1e-4, 1e2, default=0.1, log=True)}

    def importances(self, moved: Mapping[str, Tensor], setup: StageSetup) -> Mapping[str, Tensor]:
        """All weights count the same."""
        return {}  # what is left out counts 1

    def strength(self, setup: StageSetup) -> float:
        """The parameter `pull`."""
        return setup.params.number("pull")
