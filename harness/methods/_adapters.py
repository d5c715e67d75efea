"""Small modules that are added to a block's parts, and the hooks that call them.

A hook finds its module on the part that it was called for, so that copies of a model call their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

NAME = "adapter"
"""Attribute of the part that holds the module."""
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


Output = Tensor | tuple[Tensor, ...]
"""What a part of a block returns: hidden states, or these and more (attention weights, a cache)."""


class Added(nn.Module):
    """A module that is no part of the base."""

    def __init__(self) -> None:
        super().__init__()
        self.on = True


class Mixture(Added):
    """A module that mixes what several adapters, its sources, would add; while `only` is a number, that one acts alone."""

    def __init__(self, sources: Iterable[nn.Module]) -> None:
        super().__init__()
        self.sources = nn.ModuleList(sources)
        self.only: int | None = None


class Adapter(Added):
    """`scale * (U f(D x + d) + u)`; U and u start at zero.

    Args:
        width: Numbers per token.
        bottleneck: Numbers per token in between.
        activation: f.
        scale: A fixed factor, or where a learned one starts.
        learned: Whether it is learned.
    """

    def __init__(self, width: int, bottleneck: int, activation: str, scale: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))  # as nn.Linear and LoRA's reference code start
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.activation = activation
        self.scale: Tensor | float = nn.Parameter(torch.tensor([scale])) if learned else scale

    def forward(self, x: Tensor) -> Tensor:
        """Rows of hidden states to what is added, shape (..., width)."""
        inner = ACTIVATIONS[self.activation](self.down(x))
        update: Tensor = self.up(inner) * self.scale
        return update


class GatedAdapter(Adapter):
    """An adapter whose sum is weighed, token by token, by `sigmoid(w x + b)`, x being the input of the part before it."""

    def __init__(self, width: int, bottleneck: int, activation: str) -> None:
        super().__init__(width, bottleneck, activation)
        self.gate = _gate(width)

    def gated(self, x: Tensor, y: Tensor) -> Tensor:
        """What is added to the part's output y."""
        update: Tensor = torch.sigmoid(self.gate(x)) * self(y)
        return update


class GatedLora(Added):
    """`sigmoid(w x + b) alpha / rank B A x`, token by token, beside a linear layer; B starts at zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.gate, self.scale = _gate(inputs), alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Rows of inputs to what is added to the layer's outputs."""
        update: Tensor = torch.sigmoid(self.gate(x)) * self.up(self.down(x)) * self.scale
        return update


class Fusion(Mixture):
    """Attention over what several adapters would add: `sum_n softmax_n(Q y . K z_n) V z_n`, z_n being the n-th's sum.

    V starts as the identity.
    """

    def __init__(self, width: int, sources: Sequence[Adapter]) -> None:
        super().__init__(sources)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=n < 2) for n in range(3))
        nn.init.eye_(self.value.weight)

    def forward(self, y: Tensor) -> Tensor:
        """The part's output, shape (..., width), to what is added to it."""
        if self.only is not None:
            alone: Tensor = self.sources[self.only](y)
            return alone
        z = torch.stack([source(y) for source in self.sources], -2)  # (..., sources, width)
        scores = torch.einsum("...w,...nw->...n", self.query(y), self.key(z)).softmax(-1)
        return torch.einsum("...n,...nw->...w", scores, self.value(z))


def _gate(width: int) -> nn.Linear:
    """A gate that starts at a half."""
    gate = nn.Linear(width, 1)
    nn.init.zeros_(gate.weight)
    nn.init.zeros_(gate.bias)
    return gate


def put(part: nn.Module, module: nn.Module, parallel: bool) -> None:
    """Add a module to a part of a block: what it makes of the part's input or output is added to the output.

    Args:
        part: For example a feed-forward network, or a linear layer.
        module: Takes rows of hidden states of the part's width; moved to the part's device.
        parallel: Whether it is given the part's input; else it is given the output. A `GatedAdapter` is given both.
    """
    device = next((p.device for p in part.parameters()), torch.device("cpu"))
    # As a submodule of the part, it is copied, moved and saved with it; a hook leaves the part's own code as it is.
    part.add_module(NAME, module.to(device))
    gated = isinstance(module, GatedAdapter)
    part.register_forward_hook(_gated if gated else _beside if parallel else _behind, with_kwargs=True)


def _gated(
    part: nn.Module, arguments: tuple[Tensor, ...], options: Mapping[str, Tensor], output: Output
) -> Output | None:
    """The part's output plus the module of that output, weighed by the part's input."""
    # Some architectures call their parts by position, others by keyword.
    hidden = arguments[0] if arguments else options["hidden_states"]
    before = output[0] if isinstance(output, tuple) else output
    adapter = getattr(part, NAME)
    return _with(output, adapter.gated(_wide(hidden), _wide(before))) if adapter.on else None


def _behind(
    part: nn.Module, arguments: tuple[Tensor, ...], options: Mapping[str, Tensor], output: Output
) -> Output | None:
    """The part's output plus the module of that output."""
    hidden = output[0] if isinstance(output, tuple) else output
    adapter = getattr(part, NAME)
    return _with(output, adapter(_wide(hidden))) if getattr(adapter, "on", True) else None


def _beside(
    part: nn.Module, arguments: tuple[Tensor, ...], options: Mapping[str, Tensor], output: Output
) -> Output | None:
    """The part's output plus the module of the part's input."""
    hidden = arguments[0] if arguments else options["hidden_states"]
    adapter = getattr(part, NAME)
    return _with(output, adapter(_wide(hidden))) if getattr(adapter, "on", True) else None


def _wide(hidden: Tensor) -> Tensor:
    """Hidden states in a type that adapters are held in: float32 or wider, also beside a base of 16 bits."""
    # Not read off the adapter, whose parameters lie elsewhere while it trains together with others.
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def _with(output: Output, added: Tensor) -> Output:
    """A part's output, which may be the first of several things, with something added."""
    if isinstance(output, tuple):
        # Attention returns weights, and in some architectures a cache, beside the hidden states.
        return (output[0] + added.to(output[0].dtype), *output[1:])
    return output + added.to(output.dtype)
