"""Forward passes that leave out what no score depends on.

Logits come from some positions only, so the last layer's multilayer perceptron, and its attention's queries, need no
others. Under a mask in which no token sees a later one, a block of queries needs no keys after it. `scoring` uses a
shortcut for a kind of model once it has seen that it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

QUERIES = 32
"""Tokens whose attention is computed together on a CPU."""
NAME = "harness_scored"
"""Under which transformers knows this attention."""


@dataclass(frozen=True)
class Places:
    """Positions with logits in a batch that has the same rows for each of several members."""

    members: int
    width: int
    """Tokens of a row."""
    flat: Tensor
    """Positions, counted through the rows of a member, ascending; shape `(places,)`."""

    def chosen(self, states: Tensor) -> Tensor:
        """States of shape `(members * rows, tokens, size)` there: `(members, places, size)`.

        Virtual tokens, where there are any, come first in a row.
        """
        states = states[:, -self.width :]
        return states.reshape(self.members, -1, states.shape[-1])[:, self.flat]

    def parts(self, size: int) -> list[Places]:
        """So many positions at a time."""
        return [Places(self.members, self.width, flat) for flat in self.flat.split(size)]

    def spread(self, states: Tensor, rows: int) -> Tensor:
        """The reverse of `chosen`, with zeros elsewhere."""
        whole = states.new_zeros(self.members, rows * self.width, states.shape[-1])
        whole[:, self.flat] = states
        return whole.view(self.members * rows, self.width, -1)

    @cached_property
    def by_row(self) -> Tensor:
        """Positions in each row, the last one repeated: `(rows, most)`; rows without any are not expected."""
        import torch

        rows, columns = self.flat // self.width, self.flat % self.width
        counts = torch.bincount(rows)
        index = torch.arange(int(counts.max()), device=self.flat.device)
        starts = counts.cumsum(0) - counts
        return columns[starts[:, None] + torch.minimum(index[None], counts[:, None] - 1)]


def last_layer(model: Any) -> Any:
    """A model's last decoder layer, or None where it cannot be told, or where a method reads it at every position."""
    from torch.nn import ModuleList

    if getattr(model, "reads_last_layer", False):
        return None
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [module for module in model.modules() if isinstance(module, ModuleList) and len(module) == count]
    return stacks[0][-1] if len(stacks) == 1 else None


@contextmanager
def shortcuts(model: Any, last: Any, places: Places, masked: bool) -> Iterator[None]:
    """Inside, what no place depends on is left out, or wrong.

    Args:
        model: A causal language model.
        last: Its last decoder layer, or None.
        places: Where logits are wanted.
        masked: Whether it is called with a mask in which no token sees a later one.
    """
    with ExitStack() as stack:
        if (module := getattr(last, "mlp", None)) is not None:
            stack.enter_context(_only_there(module, places))
        config = model.config.get_text_config()
        if masked and model.device.type == "cpu" and getattr(config, "_attn_implementation", None) == "sdpa":
            own = next(
                (getattr(last, name) for name in ("self_attn", "attn", "attention") if hasattr(last, name)), None
            )
            stack.enter_context(_attention(config, _in_blocks(places, own)))
        yield


@contextmanager
def _only_there(module: Any, places: Places) -> Iterator[None]:
    """Give a module that maps each position by itself the states at some places, and zeros to who uses others."""
    rows: list[int] = []

    def choose(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        rows.clear()
        if not arguments or arguments[0].dim() != 3 or arguments[0].shape[1] != places.width:
            return None
        rows.append(arguments[0].shape[0] // places.members)
        return (places.chosen(arguments[0]), *arguments[1:])

    def spread(module: Any, arguments: Any, states: Any) -> Tensor | None:
        return places.spread(states, rows[0]) if rows else None

    hooks = module.register_forward_pre_hook(choose), module.register_forward_hook(spread)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _attention(config: Any, function: Callable[..., Any]) -> Iterator[None]:
    """Compute attention by this function."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, function)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _in_blocks(places: Places, last: Any) -> Callable[..., Any]:
    """Attention like transformers' own, spared of keys after a block and, in the last layer, of queries elsewhere."""
    from transformers import AttentionInterface

    kernel = AttentionInterface()["sdpa"]

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        size = query.shape[2]
        if attention_mask is None or key.shape[2] != size or options.get("position_bias") is not None:
            whole: tuple[Tensor, None] = kernel(module, query, key, value, attention_mask, **options)
            return whole
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
        compute = _at_places if module is last and size == places.width else _by_blocks
        return compute(places, (query, key, value), attention_mask, options.get("scaling")).transpose(1, 2), None

    return attention


def _by_blocks(places: Places, states: tuple[Tensor, Tensor, Tensor], mask: Tensor, scale: float | None) -> Tensor:
    """Queries in blocks, each with the keys up to its end; states of shape `(rows, heads, tokens, width)`."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = states
    parts = []
    for start in range(0, query.shape[2], QUERIES):
        block = slice(start, start + QUERIES)
        before = slice(0, start + QUERIES)
        part = (query[:, :, block], key[:, :, before], value[:, :, before])
        parts.append(scaled_dot_product_attention(*part, mask[:, :, block, before], scale=scale))
    return torch.cat(parts, dim=2)


def _at_places(places: Places, states: tuple[Tensor, Tensor, Tensor], mask: Tensor, scale: float | None) -> Tensor:
    """Queries at some places, zeros elsewhere."""
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = states
    index = places.by_row.repeat(places.members, 1)[:, None, :, None]
    at = index.expand(-1, query.shape[1], -1, query.shape[3])
    seen = mask.gather(2, index.expand(-1, mask.shape[1], -1, mask.shape[3]))
    found = scaled_dot_product_attention(query.gather(2, at), key, value, seen, scale=scale)
    return found.new_zeros(query.shape).scatter_(2, at, found)
