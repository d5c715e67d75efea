"""FRoD: trained singular values and sparse rotations in a basis that layers of a kind share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod, sparse_unchecked
from harness.methods.base import Options
from harness.space import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Frod(LayerMethod):
    """Decomposes the weights of like layers together; trains the singular values and a sparse part of a rotation."""

    summary = "trained singular values and sparse rotations in a shared basis"
    paper = "Wan et al. 2025, arXiv 2512.23485"
    kind = "FrodConfig"
    trains = r".*\.frod_lambda_(l|s_values)\.default"
    # Its rotations are sparse matrices, which torch.func.vmap cannot map.
    maps = False
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=1e-4, log=True),
        "rotated_share": Float(1e-3, 0.5, default=0.01, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The share of a rotation that is trained."""
        # The progress bar of the decomposition would be written into the trial's log.
        return {"sparse_rate": setup.params.number("rotated_share"), "progressbar": False}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model with PEFT, whose layers use sparse matrices."""
        sparse_unchecked()
        return super().attach(model, setup)
