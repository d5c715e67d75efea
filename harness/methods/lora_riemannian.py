"""LoRA with gradients preconditioned by its factors, which makes steps the same however the product is factored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.lora import Lora
from harness.space import Float

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


class RiemannianLora(Lora):
    """AdamW on gradients times the damped inverse of the other factor's square."""

    summary = "LoRA with gradients preconditioned by its factors"
    paper = "Zhang and Pilanci 2024, arXiv 2402.02347"
    alone = "it brings an optimiser of its own"
    space = Lora.space | {"damping": Float(1e-6, 1.0, default=1e-2, log=True, searched=False)}

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """PEFT's wrapper of AdamW."""
        import torch
        from peft.optimizers import create_riemannian_optimizer

        optimizer: Optimizer = create_riemannian_optimizer(
            model,
            torch.optim.AdamW,
            lr=setup.params.number("learning_rate"),
            reg=setup.params.number("damping"),
            weight_decay=setup.params.number("weight_decay"),
        )
        return optimizer
