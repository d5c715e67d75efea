"""KronA: an update that is the Kronecker product of two whole matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Options
from harness.methods.lokr import LoKr

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WHOLE = 1 << 20
"""A rank above which neither factor is decomposed."""


class KronA(LoKr):
    """LoKr with both factors whole."""

    summary = "Kronecker product of two whole matrices: LoKr with both factors full"
    paper = "Edalati et al. 2022, arXiv 2212.10650"
    trains = r".*\.lokr_w[12]\.default"
    # A Kronecker product of whole factors has no rank, so trials with the same factor have equal shapes.
    same = ("target", "factor")
    space = {name: parameter for name, parameter in LoKr.space.items() if name not in ("rank", "alpha")}

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """A rank beyond all sizes, with the scale that leaves the product as it is."""
        return {"r": WHOLE, "alpha": WHOLE, "decompose_factor": self.factor(model, setup)}
