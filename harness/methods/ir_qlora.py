"""IR-QLoRA: a base rounded to four bits with as much information left as can be, and LoRA that passes its input on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.methods._rounded import RoundedLora
from harness.methods.lora import Lora
from harness.space import Choice, Float, Integer, Params

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Module

BLOCK = 64
"""Weights that share a scale and a shift."""


class IrQLora(RoundedLora):
    """Shifts each block of weights such that its four-bit codes have the highest entropy, then rounds it to NF4.

    Each of LoRA's factors adds its own input to what it gives, averaged or repeated to fit, times a learned share that
    starts at zero. Scales and shifts are kept in full precision.
    """

    summary = "LoRA with input shortcuts, on NF4 weights shifted to the highest entropy"
    paper = "Qin et al. 2024, arXiv 2402.05445"
    space = Lora.space | {
        "calibrated": Choice((True, False), default=True, searched=False),
        "shift_reach": Float(0.01, 2.0, default=0.1, log=True, searched=False),
        "shift_steps": Integer(1, 1000, default=100, log=True, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """Blocks must fill the inputs."""
        widths = [width for width in situation.model.linear_widths if width % BLOCK]
        return f"4-bit blocks need in-features that divide by {BLOCK}, but the model has {widths}" if widths else None

    def rounded(self, rows: Tensor, params: Params) -> Tensor:
        """Of the shifts around a block's median, within `shift_reach` standard deviations, the one of highest entropy."""
        import torch

        blocks = rows.reshape(-1, BLOCK)
        middle, spread = blocks.median(1, keepdim=True).values, blocks.std(1, keepdim=True)
        # Without calibration weights are rounded without a shift, which is plain NF4.
        best = torch.zeros_like(middle)
        if params.flag("calibrated"):
            reach, steps = params.number("shift_reach"), params.integer("shift_steps")
            highest = torch.full_like(middle, -1.0)
            for place in torch.linspace(-reach, reach, 2 * steps + 1).tolist():
                shift = middle + place * spread
                entropy = _entropy(_codes(blocks - shift)[0])
                best = torch.where(entropy > highest, shift, best)
                highest = torch.maximum(entropy, highest)
        codes, scale = _codes(blocks - best)
        return (_levels(rows)[codes] * scale + best).view_as(rows)

    def shape_factors(self, inner: Linear, outer: Linear, params: Params) -> None:
        """Add to each factor the shortcut that passes its input on."""
        from torch.nn.utils.parametrize import register_parametrization

        for factor in (inner, outer):
            register_parametrization(factor, "weight", _with_shortcut(factor))


def _levels(like: Tensor) -> Tensor:
    """The sixteen values of NF4, in [-1, 1] and rising."""
    from bitsandbytes.functional import get_4bit_type

    levels: Tensor = get_4bit_type("nf4", device=like.device.type).to(like).sort().values
    return levels


def _codes(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest level of each weight, and each block's scale."""
    import torch

    # A block of zeros has no scale to divide by.
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12)
    levels = _levels(blocks)
    return torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2), scale


def _entropy(codes: Tensor) -> Tensor:
    """Entropy in nats of each row's codes (16 kinds), shape (rows, 1)."""
    import torch

    places = codes + 16 * torch.arange(len(codes), device=codes.device).unsqueeze(1)
    counts = torch.bincount(places.flatten(), minlength=16 * len(codes)).view(-1, 16)
    shares = counts / codes.shape[1]
    entropies: Tensor = torch.special.entr(shares).sum(1, keepdim=True)
    return entropies


def _shortcut(outputs: int, inputs: int) -> Tensor:
    """The matrix that averages inputs in as many groups as divide both numbers, and repeats the means to fill outputs."""
    import torch

    groups = math.gcd(inputs, outputs)
    means = torch.eye(groups).repeat_interleave(inputs // groups, dim=1) * (groups / inputs)
    return means.repeat(outputs // groups, 1)


def _with_shortcut(factor: Linear) -> Module:
    import torch
    from torch import nn

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.share = nn.Parameter(torch.zeros(1, device=factor.weight.device, dtype=factor.weight.dtype))
            self.passed: Tensor
            self.register_buffer("passed", _shortcut(*factor.weight.shape).to(factor.weight), persistent=False)

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.share * self.passed

    return Shortcut()
