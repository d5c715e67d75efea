"""LoRA: a low-rank update beside each frozen linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import StageSetup
from harness.methods._linear import linear_layers, uses_conv1d
from harness.methods._stacking import ADAPTER, stacked_lora
from harness.methods.base import Options, PeftMethod
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward


class Lora(PeftMethod):
    """Adds `B A` of rank `rank`, scaled by `alpha / rank`, to frozen weights; `B` starts at zero."""

    summary = "low-rank updates beside frozen linear layers"
    paper = "Hu et al. 2021, arXiv 2106.09685; all layers and alpha 32: Schulman et al. 2025, LoRA Without Regret"
    trains = r".*\.lora_[AB]\.default\.weight"
    shares_base = True
    alone = ""
    same: ClassVar[tuple[str, ...]] = ("target",)
    space = {
        # Ten times the learning rate of full fine-tuning, at both ends.
        "learning_rate": Float(1e-5, 2e-2, default=2e-4, log=True),
        "rank": Integer(1, 512, default=16, log=True),
        "alpha": Float(1.0, 512.0, default=32.0, log=True, searched=False),
        "adapter_dropout": Float(0.0, 0.5, default=0.0, searched=False),
        "target": Choice(("all", "attention", "mlp"), default="all", searched=False),
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """What a variant sets on top."""
        return {}

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Products of stacked matrices."""
        return stacked_lora(layers, dropout)

    def config(self, model: PreTrainedModel, setup: StageSetup) -> LoraConfig:
        """LoRA on the chosen linear layers."""
        from peft import LoraConfig

        params = setup.params
        # A variant may set a rank of its own, for example where a decomposition has no more directions.
        options = {"r": params.integer("rank"), **self.options(model, setup)}
        return LoraConfig(
            lora_alpha=params.number("alpha"),
            lora_dropout=params.number("adapter_dropout"),
            target_modules=linear_layers(model, params.text("target")),
            fan_in_fan_out=uses_conv1d(model),
            task_type="CAUSAL_LM",
            **options,
        )

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The products of the factors."""
        return {
            f"{name.removeprefix('base_model.model.')}.weight": layer.get_delta_weight(ADAPTER)  # type: ignore[operator]
            for name, layer in self.layers(model).items()
        }
