"""VB-LoRA: low-rank factors put together from a bank of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VbLora(LayerMethod):
    """Each piece of a factor mixes the two best-rated vectors of a bank that all layers share."""

    summary = "low-rank factors mixed from one bank of vectors"
    paper = "Li et al. 2024, arXiv 2405.15179"
    kind = "VBLoRAConfig"
    trains = r".*vblora_(vector_bank|logits_[AB])\.default"
    maps = False
    # PEFT draws bank and logits at random, so that the product of the factors is not zero.
    identity_at_start = False
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=1e-3, log=True),
        "rank": Integer(1, 64, default=4, log=True, searched=False),
        "vectors": Integer(4, 4096, default=256, log=True),
        "vector_length": Integer(4, 1024, default=256, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Vectors whose length divides all widths."""
        sizes = [size for pair in target_shapes(model, setup) for size in pair]
        length = divisor(setup.params.integer("vector_length"), sizes, setup, "vector_length")
        params = setup.params
        return {"r": params.integer("rank"), "num_vectors": params.integer("vectors"), "vector_length": length}
