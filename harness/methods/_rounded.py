"""LoRA on a base whose weights are rounded to few bits as the method wants them, and factors that are made of less."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from harness.axes.contract import StageSetup
from harness.methods._linear import linear_layers
from harness.methods._stacking import ADAPTER
from harness.methods.base import Method
from harness.methods.lora import Lora
from harness.space import Params

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor
    from torch.nn import Linear, Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward

SLICE = 1 << 22
"""Weights that are rounded at once."""


class RoundedLora(Lora, ABC):
    """Rounds the weights of the chosen layers and keeps the rounded values in full precision.

    What rounding costs in quality is there; the memory that packed weights would save is not.
    """

    trains = r".*\.lora_[AB]\.default\.parametrizations\.weight\.(original|0\.share)"
    shares_base = False
    unmerged = False  # it belongs to the rounded base
    alone = "it rounds the base's weights"
    identity_at_start = False
    detached = Method.detached

    @abstractmethod
    def rounded(self, rows: Tensor, params: Params) -> Tensor:
        """Round weights.

        Args:
            rows: Some rows of a layer's weights in float32, shape (out-features, in-features).
            params: The stage's parameters.

        Returns:
            The rounded values, in the same shape.
        """

    @abstractmethod
    def shape_factors(self, inner: Linear, outer: Linear, params: Params) -> None:
        """Make the weights of LoRA's factors functions of what is trained.

        Args:
            inner: LoRA's `A`, from in-features to the rank.
            outer: LoRA's `B`, from the rank to out-features.
            params: The stage's parameters.
        """

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Round, wrap with PEFT, and shape the factors."""
        import torch
        from transformers.pytorch_utils import Conv1D

        with torch.no_grad():
            for name in linear_layers(model, setup.params.text("target")):
                layer = model.get_submodule(name)
                weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
                # In slices: IR-QLoRA compares dozens of roundings of each weight, which together take many times its
                # memory.
                for part in weight.split(max(1, SLICE // weight.shape[1])):
                    part.copy_(self.rounded(part.float().contiguous(), setup.params))
        attached = super().attach(model, setup)
        for module in self.layers(attached).values():
            layer = cast("LoraLayer", module)
            self.shape_factors(layer.lora_A[ADAPTER], layer.lora_B[ADAPTER], setup.params)
        return attached

    deltas = Method.deltas  # not known: the base's weights are gone

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """Its trials run alone."""
        return None
