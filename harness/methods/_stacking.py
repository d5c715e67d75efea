"""Forward passes of K adapters at once that are faster than mapping one adapter's own over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor
    from torch.nn import Linear, Module

    from harness.nn.stack import Dropout, StackedForward

ADAPTER = "default"
"""PEFT's name for the only adapter of a model."""


def stacked_lora(layers: Sequence[LoraLayer], dropout: Dropout, dora: bool = False) -> StackedForward:
    """K LoRA layers on one frozen linear layer: `W x + s_k B_k A_k x`, ranks padded with zeros.

    Args:
        layers: The K layers as PEFT made them; the first one's base serves all.
        dropout: Of the adapters' inputs, with each trial's rate.
        dora: Whether weights are decomposed: `m_k / |W + s_k B_k A_k| (W x + s_k B_k A_k x)`, where the norm of each
            output feature's weights carries no gradient (Liu et al. 2024, arXiv 2402.09353, section 4.3).
    """
    import torch

    base = layers[0].base_layer
    # In double precision, to be rounded once to whatever precision the factors have.
    scales = torch.tensor([layer.scaling[ADAPTER] for layer in layers], dtype=torch.float64)
    rates = [float(getattr(layer.lora_dropout[ADAPTER], "p", 0.0)) for layer in layers]
    # The stack wants the largest rate that any method asks for.
    dropout.p = max(dropout.p, *rates)

    def forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        down, up = weights[f"lora_A.{ADAPTER}.weight"], weights[f"lora_B.{ADAPTER}.weight"]
        up = up * scales.to(up).view(-1, 1, 1)
        magnitude = None
        if dora:
            norms = _norms(_matrix(base), up, down)
            magnitude = (weights[f"lora_magnitude_vector.{ADAPTER}.weight"] / norms).unsqueeze(1)
        drops = dropout.training and any(rates)
        if not drops and _merging_pays(base, x, down):
            merged = torch.baddbmm(_matrix(base).expand(len(layers), -1, -1), up, down)
            return _product(x, merged if magnitude is None else merged * magnitude.mT, base.bias)
        plain: Tensor = base(x.flatten(0, 1)).view(len(layers), -1, up.shape[1])
        rows = dropout(x, rates)
        inner = torch.bmm(rows.flatten(1, -2).to(down.dtype), down.mT)
        if magnitude is None:
            return _like(torch.baddbmm(plain, inner.to(plain.dtype), up.mT.to(plain.dtype)), x)
        # PEFT's sum: W x + bias + (m / |W'| - 1) W x' + m / |W'| B A x', where dropout makes x' of x
        other = (base(rows.flatten(0, 1)).view_as(plain) if drops else plain) - (
            0.0 if base.bias is None else base.bias
        )
        return _like((plain + (magnitude - 1) * other + magnitude * torch.bmm(inner, up.mT)).to(plain.dtype), x)

    return forward


def looped(layers: Sequence[Module]) -> StackedForward:
    """K layers one after the other on one trial's rows each, for layers that cannot be mapped, or hold what differs.

    They may differ in shape: each takes its part of the padded parameters.
    """
    import torch
    from torch.func import functional_call

    shapes = [{name: p.shape for name, p in layer.named_parameters() if p.requires_grad} for layer in layers]

    def forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        outputs = []
        for k, (layer, own) in enumerate(zip(layers, shapes, strict=True)):
            cut = {name: weights[name][k][tuple(slice(0, size) for size in shape)] for name, shape in own.items()}
            outputs.append(functional_call(layer, cut, (x[k],)))
        return torch.stack(outputs)

    return forward


def _merging_pays(base: Linear, x: Tensor, down: Tensor) -> bool:
    """Whether `(W + s B A) x` is quicker than `W x + s B A x`.

    On a CPU it is for small layers, whose thin products cost more in memory traffic than they save in arithmetic
    (measured: 1.6 times at 64 x 64, 1.3 at 128 x 384, .8 at 256 x 256, all with rank 8). It needs weights in the
    adapter's precision: in a coarser one a small update would be rounded away.
    """
    import torch

    weight = base.weight
    if x.is_cuda or weight.dim() != 2 or not weight.dtype == down.dtype == x.dtype or torch.is_autocast_enabled("cpu"):
        return False
    inputs, outputs = sorted(weight.shape)
    rows = x[0, ..., 0].numel()
    return bool(inputs * outputs <= 12 * down.shape[1] * (inputs + outputs) and outputs <= 512 and rows >= inputs)


def _product(x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    """K matrices of shape (out, in) on rows of shape (K, ..., in)."""
    import torch

    rows = x.flatten(1, -2)
    product = torch.bmm(rows, weights.mT) if bias is None else torch.baddbmm(bias, rows, weights.mT)
    return _like(product, x)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    return rows.view(*x.shape[:-1], rows.shape[-1])


def _matrix(base: Linear) -> Tensor:
    """A linear layer's weights as (out, in): GPT-2's are kept the other way round, those in four bits packed."""
    from peft.utils.integrations import dequantize_module_weight
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = (
        base.weight if base.weight.dim() == 2 and base.weight.is_floating_point() else dequantize_module_weight(base)
    )
    matrix: Tensor = weight.T if isinstance(base, Conv1D) else weight
    return matrix


def _norms(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Norm of each output feature's adapted weights, shape (K, out), without gradient."""
    import torch

    with torch.no_grad():
        norms: Tensor = torch.linalg.vector_norm(weight + torch.bmm(up, down), dim=2)
    return norms
