"""How much of a base a method reaches: the share of its weights that can change, read from the attached model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.cost.flops import numbers
from harness.methods.base import Method

if TYPE_CHECKING:
    from torch.nn import Module, Parameter
    from transformers import PreTrainedModel


def reach(method: Method, attached: PreTrainedModel, base: Sequence[Parameter]) -> float:
    """Share of a base's weights that move, or in whose place stands what moves.

    Args:
        method: What was attached.
        attached: The model to train.
        base: The base's parameters, as they were before; tied ones once.
    """
    moved = {id(p) for p in attached.parameters() if p.requires_grad}
    moved |= {id(p) for layer in method.layers(attached).values() for p in _stood_for(layer)}
    return sum(numbers(p) for p in base if id(p) in moved) / sum(map(numbers, base))


def _stood_for(layer: Module) -> Iterator[Parameter]:
    """The weights in whose place a layer of a method's stands."""
    from torch.nn.utils.parametrize import is_parametrized

    if hasattr(layer, "get_base_layer"):  # a layer of PEFT's
        name = getattr(layer, "parameter_name", None)  # of experts, of which it adapts one parameter
        own = layer.get_base_layer().named_parameters(recurse=False)  # type: ignore[operator]
        yield from (p for key, p in own if key == name or (name is None and key != "bias"))
    elif is_parametrized(layer):
        yield from (p for name, p in layer.named_parameters() if name.endswith(".original"))
