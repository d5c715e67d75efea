"""LoRA whose two factors both start away from zero, in subspaces that are orthogonal to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Options
from harness.methods.lora import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OrthogonalLora(Lora):
    """Odd rows of a random orthogonal matrix go into `A`, even ones into `B`: their product starts at zero."""

    summary = "LoRA with orthogonal factors, both of which learn from the first step"
    paper = "PEFT's init_lora_weights='orthogonal'; https://datta0.github.io/posts/rethink-lora-init"

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """PEFT wants an even rank."""
        rank = setup.params.integer("rank")
        # PEFT gives alternate rows of one orthogonal matrix to the two factors.
        if rank % 2:
            setup.note(f"rank {rank} was raised to {rank + 1}: orthogonal factors need an even one")
        return {"r": rank + rank % 2, "init_lora_weights": "orthogonal"}
