"""How much of a base a method reaches: the share of its weights that can change, read from the attached model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.cost.flops import numbers
from harness.methods.base import Method
from harness.models.parts import expert_weights

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from transformers import PreTrainedModel


class Weights(NamedTuple):
    """A base's parameters before a method was attached; tied ones once."""

    all: Sequence[Parameter]
    experts: Sequence[Parameter]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Weights:
        """Those of a model."""
        return cls(tuple(model.parameters()), tuple(expert_weights(model).values()))


def reach(method: Method, attached: PreTrainedModel, base: Weights) -> tuple[float | None, float | None]:
    """Share of a base's weights, and of those of its experts, that move, or in whose place stands what moves.

    Args:
        method: What was attached.
        attached: The model to train.
        base: What it was attached to.

    Returns:
        Both shares; None for experts where there are none.
    """
    moved = {id(p) for p in attached.parameters() if p.requires_grad}
    moved |= {id(p) for layer in method.layers(attached).values() for p in _stood_for(layer)}
    everything, experts = (
        sum(numbers(p) for p in some if id(p) in moved) / sum(map(numbers, some)) if some else None for some in base
    )
    return everything, experts


def _stood_for(layer: Module) -> Iterator[Parameter]:
    """The weights in whose place a layer of a method's stands."""
    from torch.nn.utils.parametrize import is_parametrized

    if hasattr(layer, "get_base_layer"):  # a layer of PEFT's
        name = getattr(layer, "parameter_name", None)  # of experts, of which it adapts one parameter
        own = layer.get_base_layer().named_parameters(recurse=False)  # type: ignore[operator]
        yield from (p for key, p in own if key == name or (name is None and key != "bias"))
    elif is_parametrized(layer):
        yield from (p for name, p in layer.named_parameters() if name.endswith(".original"))
