"""GraLoRA: a grid of small LoRAs in the place of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GraLora(LayerMethod):
    """Cuts the weights into `grid` times `grid` blocks, each with a low-rank update of its own."""

    summary = "a grid of low-rank updates on each weight"
    paper = "Jung et al. 2025, arXiv 2505.20355; rate of PEFT's benchmark"
    kind = "GraloraConfig"
    trains = r".*\.gralora_[AB]\.default"
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=2e-4, log=True),
        "rank": Integer(4, 256, default=32, log=True),
        "alpha": Float(1.0, 512.0, default=64.0, log=True, searched=False),
        "grid": Choice((2, 4), default=2, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """A grid that divides widths and rank."""
        sizes = [size for pair in target_shapes(model, setup) for size in pair]
        grid = divisor(setup.params.integer("grid"), sizes, setup, "grid")
        wanted = setup.params.integer("rank")
        # Each block has a rank of rank / grid.
        rank = wanted // grid * grid
        if rank != wanted:
            setup.note(f"rank {wanted} was cut to {rank}, which the grid divides")
        return {"r": rank, "alpha": setup.params.number("alpha"), "gralora_k": grid}
