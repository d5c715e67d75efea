"""BOFT: weights turned by a block-diagonal rotation, and each output scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


class Boft(LayerMethod):
    """Rotates each layer's inputs in blocks and scales its outputs, by a factor each that starts at one.

    The paper multiplies several rotations with inputs permuted in between (butterfly factors), which PEFT computes with
    a CUDA extension only, compiled at run time. This is its one factor: a rotation as in OFT, whose skew-symmetric
    matrices are halves of differences here, and the scales, which OFT has none of. PEFT keeps a square matrix of each
    layer's width beside it.
    """

    summary = "rotates each layer's inputs in blocks (one butterfly factor) and scales its outputs"
    paper = "Liu et al. 2023, arXiv 2311.06243"
    kind = "BOFTConfig"
    trains = r".*\.boft_(R|s)\.default"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-3, log=True),
        "block": Integer(2, 512, default=8, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Blocks that divide all inputs."""
        inputs = [size for size, _ in target_shapes(model, setup)]
        block = divisor(setup.params.integer("block"), inputs, setup, "block")
        return {"boft_block_size": block, "boft_n_butterfly_factor": 1}

    def config(self, model: PreTrainedModel, setup: StageSetup) -> PeftConfig:
        """Without PEFT's attempt to compile its extension, so that every machine computes the same."""
        from peft.tuners.boft import layer

        layer._FBD_CUDA = False  # what PEFT has found out; None: not yet tried
        return super().config(model, setup)
