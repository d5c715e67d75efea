"""HRA: weights mirrored at a few trained directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Hra(LayerMethod):
    """Multiplies each layer's inputs by a chain of Householder reflections, in pairs that cancel at the start."""

    summary = "reflects each layer's inputs at trained directions"
    paper = "Yuan et al. 2024, arXiv 2405.17484"
    kind = "HRAConfig"
    trains = r".*\.hra_u\.default"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-3, log=True),
        "rank": Integer(2, 64, default=8, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """An even number of reflections: only pairs cancel."""
        rank = setup.params.integer("rank")
        # PEFT starts each pair at the same direction, so that the second reflection undoes the first.
        if rank % 2:
            setup.note(f"rank {rank} was raised to {rank + 1}: reflections cancel in pairs")
        return {"r": rank + rank % 2}
