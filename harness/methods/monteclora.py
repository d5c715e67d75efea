"""MonteCLoRA: LoRA whose inner factor is a mixture of samples from a learned distribution while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Options
from harness.methods.lora import Lora
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward


class MonteCLora(Lora):
    """Adds noise of a learned variance to `A` in training, with a divergence from its prior in the loss."""

    summary = "LoRA with Monte Carlo samples of its inner factor while it trains"
    paper = "Sengupta et al. 2024, arXiv 2411.04358"
    trains = r".*\.(lora_[AB]\.default\.weight|lora_monteclora_sampler\.default\.(std|expert_weights)_prior)"
    alone = "it draws random numbers in every pass"
    space = Lora.space | {
        "samples": Integer(1, 64, default=8, log=True, searched=False),
        "sample_scale": Float(1e-6, 1e-1, default=1e-4, log=True, searched=False),
        "divergence_weight": Float(1e-8, 1.0, default=1e-5, log=True, searched=False),
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Random numbers are drawn for each pass anew, so that they follow from the seed and the step."""
        from peft import MontecloraConfig

        params = setup.params
        config = MontecloraConfig(
            num_samples=params.integer("samples"),
            sample_scaler=params.number("sample_scale"),
            kl_loss_weight=params.number("divergence_weight"),
            # PEFT draws for several passes ahead otherwise, and a continued trial would see other numbers.
            buffer_size=1,
        )
        return {"monteclora_config": config}

    def penalty(self, model: PreTrainedModel, setup: StageSetup) -> Callable[[], Tensor] | None:
        """The divergence, which PEFT leaves to the loop."""
        # PEFT's own method, with a leading underscore, is what its documentation tells loops to call.
        loss: Callable[[], Tensor] = model.base_model._get_monteclora_loss
        return loss

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """Let go of the last pass, which PEFT's samplers hold on to."""
        for module in model.modules():
            for name, kept in module.named_buffers(recurse=False):
                # The buffer holds on to the graph of its pass, which keeps activations alive and cannot be copied.
                if kept.requires_grad:
                    setattr(module, name, kept.detach())

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Its trials run alone."""
        return None
