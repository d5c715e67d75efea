"""C3A: an update of circulant blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class C3a(LayerMethod):
    """Adds a matrix of circulant blocks, which has one number per block row and column and yet full rank."""

    summary = "circulant blocks beside frozen linear layers"
    paper = "Chen et al. 2024, arXiv 2407.19342; rate of PEFT's benchmark"
    kind = "C3AConfig"
    trains = r".*\.c3a_kernel\.default"
    # Its product is an autograd function of its own, which torch.func.vmap cannot map.
    maps = False
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-3, 1.0, default=0.3, log=True),
        "block": Integer(1, 1024, default=64, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Blocks that divide inputs and outputs; they start at zero."""
        sizes = [size for pair in target_shapes(model, setup) for size in pair]
        return {"block_size": divisor(setup.params.integer("block"), sizes, setup, "block"), "init_weights": True}
