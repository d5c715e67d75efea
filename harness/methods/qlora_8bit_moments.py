"""QLoRA with small moments: in eight bits, or moved to the CPU where a GPU's memory is short, as its paper has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods.qlora import QLora
from harness.space import Choice

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

KINDS = {"adamw_8bit": "AdamW8bit", "paged_adamw_8bit": "PagedAdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit"}


class QLora8bitMoments(QLora):
    """AdamW of bitsandbytes'. Moments of small tensors (below 4,096 numbers) stay in 32 bits."""

    summary = "QLoRA with eight-bit or paged moments"
    alone = "it brings an optimiser of its own"
    space = QLora.space | {"adapter_optimizer": Choice(tuple(KINDS), default="adamw_8bit", searched=False)}

    def skip(self, situation: Situation) -> str | None:
        """Without a GPU there is nothing to page, and bitsandbytes would not."""
        paged = situation.params.text("adapter_optimizer", "").startswith("paged")
        refused = "bitsandbytes pages moments on a GPU only: set adapter_optimizer to adamw_8bit"
        return refused if paged and situation.device == "cpu" else super().skip(situation)

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW of bitsandbytes, with weight decay on all of LoRA's factors."""
        from bitsandbytes import optim

        params = setup.params
        kind = getattr(optim, KINDS[params.text("adapter_optimizer")])
        trained = [p for p in model.parameters() if p.requires_grad]
        # bitsandbytes' own class: transformers names it by a string that only its trainer reads.
        optimizer: Optimizer = kind(
            trained, lr=params.number("learning_rate"), weight_decay=params.number("weight_decay")
        )
        return optimizer
