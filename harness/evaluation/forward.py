"""Forward passes that leave out what no score depends on.

Logits are wanted at some positions only, so the feed-forward part of the last layer, and the queries of its attention,
are computed at those. Under a mask in which no token sees a later one, a block of queries needs no keys after it.
`loglikelihood` uses a pruned pass for a kind of model once it has seen that the scores stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PretrainedConfig, PreTrainedModel

    Attention = Callable[..., tuple[Tensor, Tensor | None]]

QUERIES = 32
"""Tokens whose attention is computed together on a CPU."""
NAME = "harness_scored"
"""Under which transformers knows this attention."""


@dataclass(frozen=True)
class Positions:
    """Positions with logits in a batch that has the same rows for each of several models."""

    models: int
    width: int
    """Tokens of a row."""
    flat: Tensor
    """Positions, counted through the rows of a model, ascending; shape `(positions,)`."""

    def select(self, states: Tensor) -> Tensor:
        """States of shape `(models * rows, tokens, size)` at the positions: `(models, positions, size)`."""
        # Soft prompts put virtual tokens in front of a row; the row's own tokens are its last ones.
        states = states[:, -self.width :]
        return states.reshape(self.models, -1, states.shape[-1])[:, self.flat]

    def split(self, size: int) -> list[Positions]:
        """So many positions at a time."""
        return [Positions(self.models, self.width, flat) for flat in self.flat.split(size)]

    def scatter(self, states: Tensor, rows: int) -> Tensor:
        """The reverse of `select`, for so many rows of a model, with zeros elsewhere."""
        whole = states.new_zeros(self.models, rows * self.width, states.shape[-1])
        whole[:, self.flat] = states
        return whole.view(self.models * rows, self.width, -1)

    @cached_property
    def by_row(self) -> Tensor:
        """Positions in each row, the last one repeated to equal length: `(rows, most of a row)`; no row may be without."""
        import torch

        rows, columns = self.flat // self.width, self.flat % self.width
        counts = torch.bincount(rows)
        index = torch.arange(int(counts.max()), device=self.flat.device)
        starts = counts.cumsum(0) - counts
        return columns[starts[:, None] + torch.minimum(index[None], counts[:, None] - 1)]


def last_layer(model: PreTrainedModel) -> Module | None:
    """A model's last decoder layer, or None where it cannot be told, or where a method reads it at every position."""
    from torch.nn import ModuleList

    if getattr(model, "reads_last_layer", False):
        return None
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [module for module in model.modules() if isinstance(module, ModuleList) and len(module) == count]
    return stacks[0][-1] if len(stacks) == 1 else None


@contextmanager
def pruned_forward(model: PreTrainedModel, last: Module | None, positions: Positions, masked: bool) -> Iterator[None]:
    """Inside, states that no wanted position depends on are left out, or wrong.

    Args:
        model: A causal language model.
        last: Its last decoder layer, or None.
        positions: Where logits are wanted.
        masked: Whether it is called with a mask in which no token sees a later one.
    """
    with ExitStack() as stack:
        if (feed_forward := getattr(last, "mlp", None)) is not None:
            stack.enter_context(_only_at(feed_forward, positions))
        config = model.config.get_text_config()
        # A GPU's kernels skip what is masked themselves; cutting queries into blocks would only start more of them.
        if masked and model.device.type == "cpu" and getattr(config, "_attn_implementation", None) == "sdpa":
            names = ("self_attn", "attn", "attention")
            own = next((getattr(last, name) for name in names if hasattr(last, name)), None)
            stack.enter_context(_attention(config, _in_blocks(positions, own)))
        yield


@contextmanager
def _only_at(module: Module, positions: Positions) -> Iterator[None]:
    """Give a module that maps each position by itself the states at some positions, and zeros to who reads others."""
    rows: list[int] = []

    def select(module: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        rows.clear()
        if not arguments or arguments[0].dim() != 3 or arguments[0].shape[1] != positions.width:
            return None
        rows.append(arguments[0].shape[0] // positions.models)
        return (positions.select(arguments[0]), *arguments[1:])

    def scatter(module: Module, arguments: tuple[Tensor, ...], states: Tensor) -> Tensor | None:
        return positions.scatter(states, rows[0]) if rows else None

    hooks = module.register_forward_pre_hook(select), module.register_forward_hook(scatter)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _attention(config: PretrainedConfig, function: Attention) -> Iterator[None]:
    """Compute attention by this function."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, function)
    # Layers look this name up at every call, so no module has to be replaced.
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _in_blocks(positions: Positions, last: Module | None) -> Attention:
    """Attention like transformers' own, spared of keys after a block and, in the last layer, of queries elsewhere."""
    from transformers import AttentionInterface

    kernel: Attention = AttentionInterface()["sdpa"]

    def attention(
        module: Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **options: object,
    ) -> tuple[Tensor, Tensor | None]:
        size = query.shape[2]
        if attention_mask is None or key.shape[2] != size or options.get("position_bias") is not None:
            return kernel(module, query, key, value, attention_mask, scaling=scaling, **options)
        # Several heads may share keys and values (grouped-query attention); torch's kernel wants as many of each.
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
        compute = _at_positions if module is last and size == positions.width else _by_blocks
        return compute(positions, (query, key, value), attention_mask, scaling).transpose(1, 2), None

    return attention


def _by_blocks(
    positions: Positions, states: tuple[Tensor, Tensor, Tensor], mask: Tensor, scale: float | None
) -> Tensor:
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


def _at_positions(
    positions: Positions, states: tuple[Tensor, Tensor, Tensor], mask: Tensor, scale: float | None
) -> Tensor:
    """Queries at some positions, zeros elsewhere; states of shape `(rows, heads, tokens, width)`."""
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = states
    index = positions.by_row.repeat(positions.models, 1)[:, None, :, None]
    at = index.expand(-1, query.shape[1], -1, query.shape[3])
    seen = mask.gather(2, index.expand(-1, mask.shape[1], -1, mask.shape[3]))
    values = scaled_dot_product_attention(query.gather(2, at), key, value, seen, scale=scale)
    return values.new_zeros(query.shape).scatter_(2, at, values)
