"""VeLoRA: LoRA that keeps one number per group of features for its backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods.base import Options
from harness.methods.lora import Lora
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward


class Velora(Lora):
    """Projects each group of a layer's inputs on one direction, the mean of its batch, and rebuilds them for gradients.

    The forward pass is LoRA's; only the gradient of `A` is rougher.
    """

    summary = "LoRA that keeps compressed inputs for the gradient of A"
    paper = "Miles et al. 2024, arXiv 2405.17991"
    alone = "its layers keep averages of their inputs"
    space = Lora.space | {
        "feature_groups": Integer(1, 4096, default=64, log=True, searched=False),
        "rebuilt_scale": Float(0.1, 10.0, default=1.0, log=True, searched=False),
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Groups that divide all inputs."""
        from peft import VeloraConfig

        widths = [inputs for inputs, _ in target_shapes(model, setup)]
        # PEFT reshapes inputs into the groups, which must fill the width.
        groups = divisor(setup.params.integer("feature_groups"), widths, setup, "feature_groups")
        return {"velora_config": VeloraConfig(num_groups=groups, scale=setup.params.number("rebuilt_scale"))}

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Its trials run alone."""
        return None
