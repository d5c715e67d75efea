"""LoRA whose factors start as a part of the weights, which the frozen base then lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from harness.axes.contract import StageSetup
from harness.methods._linear import capped, target_shapes
from harness.methods._stacking import ADAPTER
from harness.methods.lora import Lora

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor
    from transformers import PreTrainedModel


class ResidualLora(Lora):
    """Trains `B A` beside `W - s B0 A0`: at the start, and with the first factors put back, it is the base."""

    shares_base = False
    unmerged = False  # beside the whole base its factors say something else
    alone = "what its factors take from the base differs from trial to trial"

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model with PEFT."""
        return self.remember(super().attach(model, setup))

    def remember(self, attached: PreTrainedModel) -> PreTrainedModel:
        """Keep the factors as they start: with them the model is the base."""
        self._start = {name: p.detach().clone() for name, p in attached.named_parameters() if p.requires_grad}
        return attached

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The model with the factors that it started with, which together with what the base lacks are the base."""
        parameters = {name: model.get_parameter(name) for name in self._start}
        now = {name: p.detach().clone() for name, p in parameters.items()}
        try:
            _put(parameters, self._start)
            yield model
        finally:
            _put(parameters, now)

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The product of the factors less that of the first ones."""
        deltas = {}
        for name, module in self.layers(model).items():
            layer = cast("LoraLayer", module)
            down, up = (self._start[f"{name}.lora_{part}.{ADAPTER}.weight"] for part in "AB")
            first = layer.scaling[ADAPTER] * up @ down
            moved = layer.get_delta_weight(ADAPTER) - (first.T if layer.fan_in_fan_out else first)
            deltas[f"{name.removeprefix('base_model.model.')}.weight"] = moved
        return deltas


def fitting_rank(model: PreTrainedModel, setup: StageSetup, halved: bool = False) -> int:
    """The rank asked for, cut to the number of singular values that the narrowest layer has.

    Args:
        model: The base.
        setup: The stage's `rank` and `target`; takes a note where the rank is cut.
        halved: Whether each rank takes two singular vectors, so that only half as many ranks fit.
    """
    most = min(min(sizes) for sizes in target_shapes(model, setup))
    return capped(setup.params.integer("rank"), most // 2 if halved else most, setup, "rank")


def _put(parameters: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
