"""LoRA+: LoRA whose outer factor learns faster than its inner one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.lora import Lora
from harness.space import Float

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


class LoraPlus(Lora):
    """AdamW with `rate_ratio` times the learning rate on `B`."""

    summary = "LoRA with a higher learning rate on its outer factor"
    paper = "Hayou et al. 2024, arXiv 2402.12354"
    covers = Lora.covers
    alone = "it brings an optimiser of its own"
    space = Lora.space | {"rate_ratio": Float(1.0, 64.0, default=16.0, log=True)}

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW on the groups that PEFT makes of the factors."""
        import torch
        from peft.optimizers import create_loraplus_optimizer

        optimizer: Optimizer = create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            lr=setup.params.number("learning_rate"),
            loraplus_lr_ratio=setup.params.number("rate_ratio"),
            loraplus_weight_decay=setup.params.number("weight_decay"),
        )
        # PEFT makes groups for embeddings and biases, too, which are empty here.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer
