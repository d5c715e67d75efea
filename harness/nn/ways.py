"""Which quicker ways of computing a kind of model was seen to take, found by comparing them with its plain pass.

What a model does beside plain causal attention and a plain output layer has no common name among architectures, so no
setting is asked: each quicker way is tried once for each kind of model, in single precision, where rounding cannot hide
a difference. Where it gives something else, the plain way is used, and `notes` says so for the record.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from harness.nn.determinism import random_state_kept

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module, Parameter
    from transformers import PreTrainedModel

T = TypeVar("T")

TOLERANCE = 1e-4
"""Nats by which a log-probability may differ from that of a plain pass, in single precision."""


@dataclass(eq=False)
class Ways:
    """Of one kind of model; None where nothing was tried yet."""

    picks: bool | None = None
    """Whether its output layer may be handed some positions only."""
    direct: bool | None = None
    """Whether its logits are what the output layer gives, neither scaled nor capped nor masked afterwards."""
    quick: int | None = None
    """Tokens of the longest row on which quick attention gave what the model's own gives; 0 where it does not."""

    @property
    def notes(self) -> list[str]:
        """What a record says where a plain way had to be used."""
        notes = []
        if self.picks is False:
            notes.append("logits were computed at every position: with some positions only this model gives others")
        elif self.direct is False:
            notes.append("this model changes logits after its output layer, so they were computed by the whole model")
        if self.quick == 0:
            notes.append("the model's own attention was used: the quicker one gives other log-probabilities for it")
        return notes


_of_kind: dict[object, Ways] = {}
"""By what decides them, see `_kind`."""
_of_model: WeakKeyDictionary[Module, Ways] = WeakKeyDictionary()


def ways_of(model: PreTrainedModel) -> Ways:
    """What is known of a model's kind; the caller adds what it finds out."""
    if model not in _of_model:
        _of_model[model] = _of_kind.setdefault(_kind(model), Ways())
    return _of_model[model]


def share_ways(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Let a model take the ways of another, of which it is a stack."""
    _of_model[model] = ways_of(other)


def _kind(model: PreTrainedModel) -> object:
    """Its configuration and the classes of its modules, those of an attached method included."""
    return model.config.to_json_string(), frozenset(type(module) for module in model.modules())


def compared(model: PreTrainedModel, compare: Callable[[], T], otherwise: T) -> T:
    """What a comparison of two ways says; what a model's code raises in a way that it was not written for is a no.

    Args:
        model: Is in eval mode meanwhile, and computes in single precision without gradients.
        compare: Calls it in both ways.
        otherwise: What is returned where that raises.

    Raises:
        OutOfMemoryError: When a pass does not fit.
    """
    import torch

    training = {module: module.training for module in model.modules()}
    try:
        with (
            random_state_kept(),
            torch.no_grad(),
            torch.autocast(model.device.type, enabled=False),
            single_precision(model),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # models warn of masks and shapes that they do not expect
            model.eval()
            return compare()
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, NotImplementedError, AssertionError):
        return otherwise
    finally:
        for module, was in training.items():
            module.training = was


def agree(left: Tensor, right: Tensor) -> bool:
    """Whether log-probabilities are the same up to the rounding of single precision."""
    import torch

    return left.shape == right.shape and torch.allclose(
        left.float(), right.float(), rtol=TOLERANCE / 10, atol=TOLERANCE, equal_nan=True
    )


@contextmanager
def single_precision(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute in float32, one block's weights at a time, so that it takes little memory beside it."""
    import torch

    kept: dict[Parameter, Tensor] = {}

    def widen(module: Module, *_: object) -> None:
        for parameter in parameters[module]:
            if parameter.dtype in (torch.bfloat16, torch.float16):
                kept[parameter] = parameter.data
                parameter.data = parameter.data.float()

    def narrow(module: Module, *_: object) -> None:
        for parameter in parameters[module]:
            if parameter in kept:
                parameter.data = kept.pop(parameter)

    parameters = {unit: list(unit.parameters(recurse=whole)) for unit, whole in _units(model)}
    hooks = [unit.register_forward_pre_hook(widen, prepend=True) for unit in parameters]
    hooks += [unit.register_forward_hook(narrow, always_call=True) for unit in parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in kept.items():  # of modules whose pass ended in an error
            parameter.data = data


def _units(module: Module) -> Iterator[tuple[Module, bool]]:
    """A model's blocks, each as a whole since its parts may read each other's weights, and every module outside them."""
    from torch.nn import ModuleList

    yield module, False
    for child in module.children():
        if isinstance(child, ModuleList):
            yield from ((block, True) for block in child)
        else:
            yield from _units(child)
