"""LoRA: a low-rank update beside each frozen linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Situation, StageSetup
from harness.methods._linear import adapted_weight, holds_experts, layers_and_experts, linear_layers, uses_conv1d
from harness.methods._stacking import ADAPTER, stacked_lora
from harness.methods.base import Options, PeftMethod
from harness.models.parts import LINEAR, Part
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
    covers: ClassVar[tuple[Part, ...] | None] = (*LINEAR, "experts")
    space = {
        # Ten times the learning rate of full fine-tuning, at both ends.
        "learning_rate": Float(1e-5, 2e-2, default=2e-4, log=True),
        "rank": Integer(1, 512, default=16, log=True),
        "alpha": Float(1.0, 512.0, default=32.0, log=True, searched=False),
        "adapter_dropout": Float(0.0, 0.5, default=0.0, searched=False),
        "target": Choice(("all", "attention", "mlp"), default="all", searched=False),
    }

    def __init_subclass__(cls) -> None:
        """PEFT knows experts in plain LoRA only: a variant reaches them where its class says that it was looked at."""
        if "covers" not in vars(cls):
            cls.covers = LINEAR

    def skip(self, situation: Situation) -> str | None:
        """PEFT changes the weights of experts as a whole, so that it has no inputs of theirs to drop."""
        if "experts" not in situation.model.parts or "experts" not in (self.covers or ()):
            return None
        rate = situation.params.number("adapter_dropout", 0.0)
        if not rate or situation.params.text("target", "all") == "attention":
            return None
        return f"PEFT has no dropout on experts, but adapter_dropout is {rate:g}: set it to 0, or target to attention"

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """What a variant sets on top."""
        return {}

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Products of stacked matrices.

        Raises:
            CannotStack: For experts.
        """
        from harness.nn.stack import CannotStack

        if any(holds_experts(layer) for layer in layers):
            raise CannotStack("PEFT changes the weights of experts for a whole pass, which trials would share")
        return stacked_lora(layers, dropout)

    def config(self, model: PreTrainedModel, setup: StageSetup) -> LoraConfig:
        """LoRA on the chosen linear layers and experts."""
        from peft import LoraConfig

        params, target = setup.params, setup.params.text("target")
        reaches_experts = "experts" in (self.covers or ())
        layers, experts = layers_and_experts(model, target) if reaches_experts else (linear_layers(model, target), [])
        # A variant may set a rank of its own, for example where a decomposition has no more directions.
        options = {"r": params.integer("rank"), **self.options(model, setup)}
        return LoraConfig(
            lora_alpha=params.number("alpha"),
            lora_dropout=params.number("adapter_dropout"),
            target_modules=layers,
            target_parameters=experts or None,
            fan_in_fan_out=uses_conv1d(model),
            task_type="CAUSAL_LM",
            **options,
        )

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The products of the factors."""
        return {
            adapted_weight(name, layer): layer.get_delta_weight(ADAPTER)  # type: ignore[operator]
            for name, layer in self.layers(model).items()
        }
