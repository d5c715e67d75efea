"""Forward passes of K adapters at once that are faster than mapping one adapter's own over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from harness.fused import Dropout, StackedForward

ADAPTER = "default"
"""PEFT's name for the only adapter of a model."""


def stacked_lora(layers: Sequence[Any], dropout: Dropout, dora: bool = False) -> StackedForward:
    """K LoRA layers on one frozen linear layer: `W x + s_k B_k A_k x`, ranks padded with zeros.

    Args:
        layers: The K layers as PEFT made them; the first one's base serves all.
        dropout: Of the adapters' inputs, with each trial's rate.
        dora: Whether weights are decomposed: `m_k / |W + s_k B_k A_k| (W x + s_k B_k A_k x)`, where the norm of each
            output feature's weights carries no gradient (Liu et al. 2024, arXiv 2402.09353, section 4.3).
    """
    import torch

    base = layers[0].base_layer
    device = next(layers[0].parameters()).device
    scales = torch.tensor([layer.scaling[ADAPTER] for layer in layers], dtype=torch.float64, device=device)
    rates = [float(getattr(layer.lora_dropout[ADAPTER], "p", 0.0)) for layer in layers]

    def forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        down, up = weights[f"lora_A.{ADAPTER}.weight"], weights[f"lora_B.{ADAPTER}.weight"]
        plain: Tensor = base(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        scale = scales.to(down.dtype).view(-1, 1, 1)
        rows = dropout(x, rates)
        update = torch.bmm(torch.bmm(rows.flatten(1, -2).to(down.dtype), down.mT), up.mT * scale).view_as(plain)
        if not dora:
            return (plain + update).to(plain.dtype)
        norm = _norms(base, down, up, scale, layers[0].fan_in_fan_out)
        magnitude = weights[f"lora_magnitude_vector.{ADAPTER}.weight"] / norm
        magnitude = magnitude.view(len(layers), *[1] * (x.dim() - 2), -1)
        return _dora(base, plain, update, magnitude, rows if dropout.training and any(rates) else None)

    return forward


def _dora(base: Any, plain: Tensor, update: Tensor, magnitude: Tensor, dropped: Tensor | None) -> Tensor:
    """PEFT's sum: without dropout `m (W x + B A x) + bias`, with it `W x + (m - 1) W x' + m B A x'` of dropped-out `x'`."""
    bias = 0.0 if base.bias is None else base.bias
    other: Tensor = (plain if dropped is None else base(dropped.flatten(0, 1)).view_as(plain)) - bias
    return (plain + (magnitude - 1) * other + magnitude * update).to(plain.dtype)


def _norms(base: Any, down: Tensor, up: Tensor, scale: Tensor, transposed: bool) -> Tensor:
    """Norm of each output feature's adapted weights, shape (K, out), without gradient."""
    import torch

    with torch.no_grad():
        weight = base.weight.T if transposed else base.weight
        norms: Tensor = torch.linalg.vector_norm(weight + scale * torch.bmm(up, down), dim=2)
    return norms
