"""QA-LoRA: LoRA that sees the sums of groups of inputs, so that it merges into a quantised base without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.methods._rounded import RoundedLora
from harness.methods.lora import Lora
from harness.space import Choice, Integer, Params

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear


class QaLora(RoundedLora):
    """Rounds each group of inputs to a grid of its own, and adds to all weights of a group the same.

    What is merged is a shift of each group's grid, so that the merged model has as few bits as the base.
    """

    summary = "LoRA on sums of input groups, which merges into a base rounded by groups"
    paper = "Xu et al. 2023, arXiv 2309.14717"
    trains = r".*\.(lora_A\.default\.parametrizations\.weight\.original|lora_B\.default\.weight)"
    space = Lora.space | {
        "bits": Choice((2, 3, 4, 8), default=4, searched=False),
        "group": Integer(2, 256, default=32, log=True, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """Groups must fill the inputs."""
        size = situation.params.integer("group", 32)
        widths = [width for width in situation.model.linear_widths if width % size]
        return (
            f"groups of {size} inputs do not fill layers of width {widths}: set group to a divisor" if widths else None
        )

    def rounded(self, rows: Tensor, params: Params) -> Tensor:
        """The nearest of `2^bits` values evenly from each group's smallest to its largest."""
        groups = rows.unflatten(1, (-1, params.integer("group")))
        low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
        # A group of equal weights has no range to divide into steps.
        step = ((high - low) / (2 ** params.integer("bits") - 1)).clamp(min=1e-12)
        nearest: Tensor = ((groups - low) / step).round() * step + low
        return nearest.flatten(1)

    def shape_factors(self, inner: Linear, outer: Linear, params: Params) -> None:
        """One column of the inner factor for each group of inputs, whose sum it sees."""
        import math

        from torch import nn
        from torch.nn.utils.parametrize import register_parametrization

        size = params.integer("group")

        class Grouped(nn.Module):
            def forward(self, columns: Tensor) -> Tensor:
                # All inputs of a group have the same weight, which is the same as a sum of the group first.
                wide: Tensor = columns.repeat_interleave(size, dim=1)
                return wide

            def right_inverse(self, weight: Tensor) -> Tensor:
                first: Tensor = weight[:, ::size].contiguous()
                return first

        register_parametrization(inner, "weight", Grouped(), unsafe=True)
        original = inner.get_parameter("parametrizations.weight.original")
        # As LoRA's inner factor starts, at the size that is trained.
        nn.init.kaiming_uniform_(original, a=math.sqrt(5))
