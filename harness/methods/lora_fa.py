"""LoRA-FA: LoRA whose inner factor stays as it was drawn, and whose outer one is steered to full tuning's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.lora import Lora

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward


class LoraFa(Lora):
    """Only `B` moves, with the gradient whose update of the weight is closest to that of full fine-tuning."""

    summary = "LoRA with a frozen inner factor, so that fewer activations are kept"
    paper = "Zhang et al. 2023, arXiv 2308.03303"
    trains = r".*\.lora_B\.default\.weight"
    alone = "it brings an optimiser of its own"

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze the inner factors."""
        attached = super().attach(model, setup)
        for name, parameter in attached.named_parameters():
            # A frozen inner factor needs no gradient, so that the layer's input, as wide as the model, is not kept.
            if ".lora_A." in name:
                parameter.requires_grad_(False)
        return attached

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """PEFT's optimiser for LoRA-FA, which corrects the gradients."""
        from peft.optimizers import create_lorafa_optimizer

        params = setup.params
        optimizer: Optimizer = create_lorafa_optimizer(
            model,
            r=params.integer("rank"),
            lora_alpha=params.number("alpha"),
            lr=params.number("learning_rate"),
            weight_decay=params.number("weight_decay"),
        )
        return optimizer

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Its trials run alone."""
        return None
