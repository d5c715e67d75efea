"""OFT: weights turned by a block-diagonal rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Oft(LayerMethod):
    """Multiplies each layer's inputs by a rotation in blocks, which keeps the angles between its neurons' weights."""

    summary = "rotates each layer's inputs in blocks"
    paper = "Qiu et al. 2023, arXiv 2306.07280"
    kind = "OFTConfig"
    trains = r".*\.oft_R\.default\.weight"
    # PEFT writes into slices of the skew-symmetric matrix, which torch.func.vmap cannot map.
    maps = False
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-4, log=True),
        "block": Integer(2, 512, default=32, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Blocks that divide all inputs; rotations by the exact Cayley transform, which needs no small steps."""
        widths = [inputs for inputs, _ in target_shapes(model, setup)]
        block = divisor(setup.params.integer("block"), widths, setup, "block")
        # PEFT's default, a truncated series for the inverse, is a rotation for small angles only.
        return {"oft_block_size": block, "use_cayley_neumann": False}
