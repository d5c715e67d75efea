"""What methods share that add a computed change to frozen weights: W = W0 + change(what is trained)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Method
from harness.models.parts import LINEAR

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.methods._changes import Change


class DeltaMethod(Method, ABC):
    """Puts a `Change` on the weights of chosen layers, as a parametrisation of torch's.

    What a change trains is named `LAYER.parametrizations.weight.0.NAME`.
    """

    covers = LINEAR
    shares_base = True
    needs_float32 = True

    @abstractmethod
    def changes(self, model: PreTrainedModel, setup: StageSetup) -> Mapping[str, Change]:
        """By the layer's name, what is added to its weight; each starts at zero. The base is frozen already."""

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze the base and put the changes on it."""
        from torch.nn.utils.parametrize import register_parametrization

        model.requires_grad_(False)
        for name, change in self.changes(model, setup).items():
            layer = model.get_submodule(name)
            # `unsafe` skips torch's check that shape and dtype stay, which runs a forward pass of each change.
            register_parametrization(layer, "weight", change.to(layer.weight.device), unsafe=True)
        return model

    def layers(self, model: PreTrainedModel) -> dict[str, Module]:
        """The layers whose weights change."""
        return {name: model.get_submodule(name) for name in placed(model)}

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The changes themselves."""
        return {f"{name}.weight": change.value() for name, change in placed(model).items()}

    @contextmanager
    def detached(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The same model without the changes."""
        changes = placed(model).values()
        for change in changes:
            change.on = False
        try:
            yield model
        finally:
            for change in changes:
                change.on = True

    def merge(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """A copy with the changed weights in the place of the base's."""
        from torch.nn import Parameter

        copy = deepcopy(model).eval()
        for name in placed(copy):
            layer = copy.get_submodule(name)
            weight = layer.weight.detach().clone()
            # By hand: torch's own removal takes the weight off the class, which the original has in common.
            layer.__class__ = type(layer).__bases__[0]
            del layer.parametrizations
            layer.register_parameter("weight", Parameter(weight, requires_grad=False))
        return copy


def placed(model: Module) -> dict[str, Change]:
    """The changes on a model's weights, by the layer's name."""
    from harness.methods._changes import Change

    end = ".parametrizations.weight.0"
    return {name.removesuffix(end): module for name, module in model.named_modules() if isinstance(module, Change)}
