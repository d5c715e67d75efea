"""K trials' trainable parameters stacked on one base, trained and scored in one forward and backward pass.

Each layer with trainable parameters is replaced by a stack of K, which sends rows `[k * B, (k + 1) * B)` through trial
k's parameters; frozen layers see all rows at once. No operation mixes rows of two trials, so each trial learns what it
would learn alone, up to the rounding of larger matrix products.

Parameters live in one matrix with a row per trial, padded with zeros where trials differ in rank: zero padding has zero
gradient and stays zero. A row is one vector to AdamW and to gradient clipping, which therefore cost a handful of
operations per trial whatever the number of layers. Compare PLoRA (Yan et al. 2025, arXiv 2508.02932) and LoRAFusion
(Zhu et al. 2025, arXiv 2510.00206).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from harness.nn.optimizer import decaying
from harness.nn.ways import share_ways

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ALIGNMENT = 16
"""Numbers between the starts of two parameters in a row, so that each starts on a vector register's boundary."""

StackedForward = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""(parameters by name, each of shape (K, ...); rows, shape (K, B, ...)) to rows, shape (K, B, ...)."""


class Stackable(Protocol):
    """What a stack asks of the method that was attached to its models (see `Method`)."""

    def layers(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """By name, the modules that hold all trainable parameters."""
        ...

    def stacked(self, layers: Sequence[nn.Module], dropout: Dropout) -> StackedForward | None:
        """A forward pass of K layers at once, or None to map the first one's own over the trials."""
        ...


class CannotStack(Exception):
    """Why these models cannot be put on one base; the message ends a sentence that starts with 'it ran alone:'."""


@dataclass(frozen=True)
class Slot:
    """One parameter of the stack."""

    name: str
    """In the attached model."""
    shape: tuple[int, ...]
    """Of the largest of the trials' parameters."""
    start: int
    """Column of its first number."""
    decays: bool

    @property
    def size(self) -> int:
        """Numbers per trial."""
        return int(torch.Size(self.shape).numel())

    @property
    def columns(self) -> slice:
        """Where they stand."""
        return slice(self.start, self.start + self.size)


class Dropout(nn.Module):
    """Dropout for K trials, each with its own rate and its own stream of random numbers.

    A trial's mask is drawn in the shape that it would have alone, so that it does not depend on its neighbours.
    """

    def __init__(self, count: int, device: str) -> None:
        super().__init__()
        self.generators = [torch.Generator(device) for _ in range(count)]
        self.p = 0.0
        """The largest rate that a method asked for; those of the base's layers are theirs."""
        self.lengths: Sequence[int] = [0] * count
        """Tokens that each trial's batch would be padded to alone."""

    def start(self, seeds: Sequence[int]) -> None:
        """Begin a step with each trial's seed."""
        for generator, seed in zip(self.generators, seeds, strict=True):
            generator.manual_seed(seed)

    def forward(self, x: Tensor, rates: Sequence[float]) -> Tensor:
        """Rows with entries zeroed and the others scaled up; as they are when scoring.

        Args:
            x: Shape (K, B, tokens, ...).
            rates: Each trial's share of entries to zero.
        """
        if not self.training or not any(rates):
            return x
        mask = torch.zeros_like(x)
        for k, (rate, generator) in enumerate(zip(rates, self.generators, strict=True)):
            own = mask[k, :, : self.lengths[k]]
            if not rate:  # alone it would draw nothing
                own.fill_(1.0)
                continue
            stays = torch.empty(own.shape, dtype=x.dtype, device=x.device).bernoulli_(1 - rate, generator=generator)
            own.copy_(stays / (1 - rate) if rate < 1 else stays)
        return x * mask


class _StackedDropout(nn.Module):
    """A dropout layer of the base."""

    def __init__(self, rate: float, dropout: Dropout) -> None:
        super().__init__()
        self.p, self.dropout = rate, dropout

    def forward(self, x: Tensor) -> Tensor:
        count = len(self.dropout.generators)
        result: Tensor = self.dropout(x.unflatten(0, (count, -1)), [self.p] * count)
        return result.flatten(0, 1)


class _Unpack(torch.autograd.Function):
    """A matrix with a row per trial as the parameters that its columns hold; the gradient is such a matrix again.

    The gradient of a slice by autograd is as large as the whole matrix, once for each parameter.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, slots: Sequence[Slot]) -> tuple[Tensor, ...]:
        """Views of shape (K, ...)."""
        ctx.slots, ctx.like = slots, values
        return tuple(values[:, slot.columns].unflatten(1, slot.shape) for slot in slots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Put them side by side."""
        whole = torch.zeros_like(ctx.like)
        for slot, gradient in zip(ctx.slots, gradients, strict=True):
            whole[:, slot.columns].unflatten(1, slot.shape).copy_(gradient)
        return whole, None


class _StackedLayer(nn.Module):
    """K layers in the place of one."""

    def __init__(self, forward: StackedForward, names: Mapping[str, str], stack: Stack) -> None:
        super().__init__()
        self._forward, self._names, self._count = forward, names, stack.count
        self._parameters_of = stack.parameters
        self.rows = stack.count
        """Rows of the forward pass that runs."""

    def forward(self, x: Tensor) -> Tensor:
        held = self._parameters_of()
        weights = {inner: held[name] for inner, name in self._names.items()}
        if x.shape[0] == 1 and self._count > 1:  # embedded positions, which a model computes once for all rows
            once = self._forward(weights, x.expand(self._count, *x.shape[1:]).unsqueeze(1))
            return once.expand(-1, self.rows // self._count, *once.shape[2:]).flatten(0, 1)
        return self._forward(weights, x.unflatten(0, (self._count, -1))).flatten(0, 1)


def mapped(layer: nn.Module) -> StackedForward:
    """K copies of a layer's own forward, by `torch.func.vmap`; for parameters of equal shapes."""

    def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = functional_call(layer, weights, (x,))
        return result

    together = vmap(one, randomness="error")
    return lambda weights, x: together(dict(weights), x)


class Stack:
    """K models that a method was attached to, as one model of K times the rows.

    `model` is an ordinary causal language model whose rows are member-major: rows [k * B, (k + 1) * B) are trial k's.

    Args:
        models: Attached models with equal bases; they are read, and `write_back` writes to them.
        methods: What was attached to each; one class.

    Raises:
        CannotStack: When these models cannot share a forward pass.
    """

    def __init__(self, models: Sequence[PreTrainedModel], methods: Sequence[Stackable]) -> None:
        self.models, self.count = models, len(models)
        host = models[0]
        self._refuse(host)
        self.device, self.dtype = host.device.type, next(p.dtype for p in host.parameters() if p.requires_grad)
        self.dropout = Dropout(self.count, self.device)
        layers = methods[0].layers(host)
        self.slots = _slots(models, layers)
        width = self.slots[-1].start + _aligned(self.slots[-1].size)
        self.values = nn.Parameter(torch.zeros(self.count, width, dtype=self.dtype, device=host.device))
        self.values.grad = torch.zeros_like(self.values)
        plain = self.values.detach()
        self._plain = {slot.name: plain[:, slot.columns].unflatten(1, slot.shape) for slot in self.slots}
        self._unpacked: dict[str, Tensor] | None = None
        self.read()
        self.model = twin(host)
        share_ways(self.model, host)
        self._replace_layers(layers, methods)
        self.model.add_module("stack_dropout", self.dropout)
        self.model.register_parameter("stack_values", self.values)  # a model is asked for its device and its type
        self.model.tie_weights = lambda *args, **options: None  # tied parameters are one parameter of the stack
        self.model.register_forward_pre_hook(self._begin, with_kwargs=True)

    @property
    def decayed(self) -> int:
        """Columns that weight decay applies to: those before this one."""
        return next((slot.start for slot in self.slots if not slot.decays), self.values.shape[1])

    @property
    def gradients(self) -> Tensor:
        """Of `values`; kept, and set to zero by whoever steps."""
        assert self.values.grad is not None
        return self.values.grad

    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, each of shape (K, ...); with a way back to `values` while gradients are wanted."""
        if not torch.is_grad_enabled():
            return self._plain
        if self._unpacked is None:
            views = _Unpack.apply(self.values, self.slots)  # type: ignore[no-untyped-call]
            self._unpacked = dict(zip(self._plain, views, strict=True))
        return self._unpacked

    def read(self) -> None:
        """Take the trials' parameters from their models."""
        with torch.no_grad():
            for name, stacked in self._plain.items():
                for k, model in enumerate(self.models):
                    own = model.get_parameter(name)
                    _cut(stacked[k], own.shape).copy_(own)

    def write_back(self) -> None:
        """Give the trials' parameters to their models."""
        with torch.no_grad():
            for name, stacked in self._plain.items():
                for k, model in enumerate(self.models):
                    own = model.get_parameter(name)
                    own.copy_(_cut(stacked[k], own.shape))

    def named(self, row: Tensor, member: int) -> dict[str, Tensor]:
        """One trial's tensors by parameter name, in the trial's own shapes; views.

        Args:
            row: Numbers laid out as a row of `values`, shape (columns,).
            member: Index of the trial.
        """
        tensors = {}
        for slot in self.slots:
            padded = row[slot.columns].view(slot.shape)
            tensors[slot.name] = _cut(padded, self.models[member].get_parameter(slot.name).shape)
        return tensors

    def _refuse(self, host: PreTrainedModel) -> None:
        config = host.config.get_text_config()
        for name in ("attention_dropout", "attn_pdrop"):
            if getattr(config, name, 0.0):
                raise CannotStack(f"{name} of the base draws random numbers that trials would share")
        dtypes = {p.dtype for p in host.parameters() if p.requires_grad}
        if len(dtypes) != 1:
            raise CannotStack(f"its trainable parameters have several types ({', '.join(map(str, dtypes))})")

    def _replace_layers(self, layers: Mapping[str, nn.Module], methods: Sequence[Stackable]) -> None:
        for name, layer in layers.items():
            members = [model.get_submodule(name) for model in self.models]
            own = methods[0].stacked(members, self.dropout)
            names = {inner: self._name(f"{name}.{inner}") for inner in _trainable(layer)}
            if own is None and any(self._differs(member, layer) for member in members):
                raise CannotStack(f"{name} differs in shape among trials")
            self.model.set_submodule(name, _StackedLayer(own or mapped(layer), names, self))
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.Dropout) and module.p:
                self.model.set_submodule(name, _StackedDropout(module.p, self.dropout))
        self._layers = [module for module in self.model.modules() if isinstance(module, _StackedLayer)]

    def _name(self, name: str) -> str:
        """The name that a parameter is stacked under, which may be another name of a tied one."""
        wanted = self.models[0].get_parameter(name)
        return next(known for known in self._plain if self.models[0].get_parameter(known) is wanted)

    @staticmethod
    def _differs(member: nn.Module, layer: nn.Module) -> bool:
        return any(member.get_parameter(name).shape != layer.get_parameter(name).shape for name in _trainable(layer))

    def _begin(self, model: nn.Module, positional: tuple[object, ...], named: dict[str, object]) -> None:
        """Before a forward pass: parameters are unpacked anew, and layers learn how many rows there are."""
        self._unpacked = None
        inputs = (*positional, *named.values())
        first = next((each for each in inputs if isinstance(each, Tensor) and each.dim() > 1), None)
        for layer in self._layers:
            layer.rows = self.count if first is None else len(first)


def _cut(padded: Tensor, shape: Sequence[int]) -> Tensor:
    return padded[tuple(slice(0, size) for size in shape)]


def _trainable(layer: nn.Module) -> list[str]:
    return [name for name, p in layer.named_parameters() if p.requires_grad]


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT


def _slots(models: Sequence[PreTrainedModel], layers: Mapping[str, nn.Module]) -> list[Slot]:
    """Where each parameter stands in a row: those that decay first, so that either kind is one slice for AdamW.

    Raises:
        CannotStack: When a parameter is outside the layers, or its dimensions differ among trials.
    """
    host = models[0]
    names = [name for name, p in host.named_parameters() if p.requires_grad]
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    if loose := [name for name in names if id(host.get_parameter(name)) not in inside]:
        raise CannotStack(f"{loose[0]} is in no layer that takes rows")
    decays = decaying(host)
    slots: list[Slot] = []
    start = 0
    for name in sorted(names, key=lambda name: name not in decays):
        shapes = [tuple(model.get_parameter(name).shape) for model in models]
        if len({len(shape) for shape in shapes}) != 1:
            raise CannotStack(f"{name} differs in dimensions among trials")
        shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        slots.append(Slot(name=name, shape=shape, start=start, decays=name in decays))
        start += _aligned(slots[-1].size)
    return slots


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model's modules that holds the same tensors: layers may be replaced, weights take no memory again."""
    tensors = [*model.parameters(), *model.buffers()]
    for layer in model.modules():
        # bitsandbytes moves an eight-bit weight's scales to the layer at its first call; the first twin to run would
        # take them from the others.
        if hasattr(layer, "init_8bit_state"):
            if layer.weight.CB is not None:
                layer.init_8bit_state()
            tensors += [layer.state.CB, layer.state.SCB]
    # `deepcopy` takes what its memo holds instead of copying it.
    memo = {id(tensor): tensor for tensor in tensors}
    copy: PreTrainedModel = deepcopy(model, memo)
    return copy


@contextmanager
def stacked(models: Sequence[PreTrainedModel], methods: Sequence[Stackable]) -> Iterator[tuple[PreTrainedModel, int]]:
    """A model of K times the rows for scoring, and K; a single model as it is.

    Args:
        models: Attached models with equal bases.
        methods: What was attached to each.

    Raises:
        CannotStack: When these models cannot share a forward pass.
    """
    if len(models) == 1:
        yield models[0], 1
    else:
        yield Stack(models, methods).model, len(models)
