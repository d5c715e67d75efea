"""The slow places of a small model's training step on a CPU, done otherwise with the same result.

In the last layer, only the positions whose next token carries loss matter to the loss; a language model tuned on answers
has few of them. The last layer's queries and its feed-forward part are computed there and nowhere else.

In bfloat16, torch's own attention has a slow backward pass: on 64 rows of 100 tokens and 8 heads of 8 numbers, one
thread, it takes 122 ms for forward and backward (46 in float32), plain matrix products 23. They hold the scores of all
pairs in memory, so they serve sequences of up to `LONGEST` tokens.

Whatever a model adds to plain causal attention is left to torch, and a kind of model that gives other
log-probabilities in these ways (`harness.nn.ways`) is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING

from harness.models.base_model import context_length
from harness.nn.batches import Batch, collate
from harness.nn.logits import supervised_nats
from harness.nn.sequences import IGNORED, TokenSequence
from harness.nn.ways import agree, compared, ways_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

LONGEST = 512
FEW = 3
"""Of this many positions at most one may carry loss for the last layer to be cut short."""
NAME = "harness_causal"
"""Under which transformers knows it."""
_LATE = "harness_late"
"""Attribute of the last layer's attention while it is cut short: the positions, shape (rows, positions)."""


@contextmanager
def quick_attention(model: PreTrainedModel, batch: Batch | None = None) -> Iterator[None]:
    """Quicker ways inside, where the model attends plainly; no mask may be given meanwhile.

    Rows are padded on the right, where a causal model does not look.

    Args:
        model: A causal language model.
        batch: What it will be called with, if only the outputs at its supervised positions will be used.
    """
    if model.config.get_text_config()._attn_implementation != "sdpa" or not _agrees(model, batch):
        yield
        return
    with _quick(model, batch):
        yield


@contextmanager
def _quick(model: PreTrainedModel, batch: Batch | None) -> Iterator[None]:
    _register()
    config = model.config.get_text_config()
    config._attn_implementation = NAME
    try:
        with ExitStack() as stack:
            if batch is not None:
                stack.enter_context(_short_last_layer(model, batch))
            yield
    finally:
        config._attn_implementation = "sdpa"


def _agrees(model: PreTrainedModel, batch: Batch | None) -> bool:
    """Whether a kind of model gives the same in the quick way; tried again for a row longer than those tried before."""
    ways, config = ways_of(model), model.config.get_text_config()
    tokens = context_length(config, LONGEST) if batch is None else batch.input_ids.shape[1]
    if ways.quick is None or (batch is not None and 0 < ways.quick < tokens):
        sample = _sample(model, tokens, 1 if batch is None else len(batch.target))

        def same() -> bool:
            plain = supervised_nats(model, sample)
            with _quick(model, sample):
                return agree(supervised_nats(model, sample), plain)

        ways.quick = tokens if compared(model, same, False) else 0
    return ways.quick > 0


def _sample(model: PreTrainedModel, tokens: int, count: int) -> Batch:
    """Two rows for each of several trials, one half as long as the other, with loss on their ends.

    Args:
        model: Who will be shown them.
        tokens: Of the longer row.
        count: Trials.
    """
    import numpy as np

    size = model.config.get_text_config().vocab_size
    # The first and the last tokens of a vocabulary may have a meaning of their own, such as a place for a picture.
    ids = tuple(np.random.default_rng(0).integers(size // 4, size // 2, tokens).tolist())
    rows = []
    for row in (ids, ids[: max(2, tokens // 2)]):
        end = max(1, len(row) // 8)
        rows.append((TokenSequence(row, (*[IGNORED] * (len(row) - end), *row[-end:])),))
    return collate([rows] * count, 0, model.device.type)


@contextmanager
def _short_last_layer(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """The last layer's queries and feed-forward part at the batch's supervised positions only."""
    late = late_positions(batch)
    layer = None if late.shape[1] * FEW > batch.input_ids.shape[1] else _last_layer(model)
    if layer is None:
        yield
        return
    attention, feed_forward = layer
    lengths: list[int] = []

    def select(module: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        lengths.append(arguments[0].shape[1])
        return (_gathered(arguments[0], late), *arguments[1:])

    def spread(module: Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return _scattered(output, late, lengths.pop())

    hooks = [feed_forward.register_forward_pre_hook(select), feed_forward.register_forward_hook(spread)]
    setattr(attention, _LATE, late)
    try:
        yield
    finally:
        delattr(attention, _LATE)
        for hook in hooks:
            hook.remove()


def _last_layer(model: PreTrainedModel) -> tuple[Module, Module] | None:
    """Attention and feed-forward part of the last layer, where it has just these two under their usual names.

    None, too, where a method reads that layer at every position.
    """
    from torch.nn import ModuleList

    if getattr(model, "reads_last_layer", False):
        return None
    stacks = [module for module in model.modules() if isinstance(module, ModuleList) and len(module)]
    if not stacks or draws_numbers(model):  # fewer positions would draw other random numbers
        return None
    layer = max(stacks, key=len)[-1]
    attention = getattr(layer, "self_attn", None) or getattr(layer, "attn", None)
    feed_forward = getattr(layer, "mlp", None)
    named = {name for name, _ in layer.named_children()}
    others = {name for name in named if "norm" not in name and not name.startswith("ln_")} - {
        "self_attn",
        "attn",
        "mlp",
    }
    return None if attention is None or feed_forward is None or others else (attention, feed_forward)


def draws_numbers(model: PreTrainedModel) -> bool:
    """Whether training it draws random numbers, whose values depend on the shape of a forward pass."""
    config = model.config.get_text_config()
    rates = [getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop")]
    rates += [module.p for module in model.modules() if "Dropout" in type(module).__name__]
    return any(rates)


def late_positions(batch: Batch) -> Tensor:
    """Supervised positions of each row, shape (K * rows, most of a row); the row's length where it has fewer."""
    import torch

    width = batch.input_ids.shape[1]
    flat = batch.position[batch.target != IGNORED]
    rows, columns = flat // width, flat % width
    counts = torch.bincount(rows, minlength=len(batch.input_ids))
    late = batch.input_ids.new_full((len(counts), int(counts.max())), width)
    within = torch.arange(len(flat), device=flat.device) - (counts.cumsum(0) - counts)[rows]
    late[rows, within] = columns
    return late


def _gathered(x: Tensor, late: Tensor) -> Tensor:
    """Entries of x, shape (rows, tokens, ...), at some positions; fillers take the last token."""
    index = late.clamp(max=x.shape[1] - 1).view(*late.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


def _scattered(x: Tensor, late: Tensor, tokens: int) -> Tensor:
    """The opposite: zeros elsewhere; what fillers hold is dropped."""
    whole = x.new_zeros(len(x), tokens + 1, *x.shape[2:])
    index = late.view(*late.shape, *[1] * (x.dim() - 2)).expand_as(x)
    return whole.scatter(1, index, x)[:, :tokens]


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, causal_attention)
    # With a mask wherever torch's kernel is given one; only where it is given none does `causal_attention` step in.
    AttentionMaskInterface.register(NAME, sdpa_mask)


@cache
def _mask(tokens: int, dtype: torch.dtype) -> Tensor:
    import torch

    return torch.full((tokens, tokens), float("-inf"), dtype=dtype).triu(1)


def causal_attention(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v, every token seeing itself and what came before.

    Args:
        module: The attention layer.
        query: Shape (rows, heads, tokens, width).
        key: Shape (rows, groups of heads, tokens, width).
        value: Like `key`.
        attention_mask: None; anything else goes to torch's kernel.
        scaling: Of the products of queries and keys; None for one over the root of the width.
        options: What other kernels take.

    Returns:
        Shape (rows, tokens, heads, width), and None for the weights.
    """
    import torch
    from transformers import AttentionInterface

    tokens, late = query.shape[2], getattr(module, _LATE, None)
    causal = options.get("is_causal")
    simple = attention_mask is None and (getattr(module, "is_causal", True) if causal is None else causal)
    simple = simple and key.shape[2] == tokens and not options.get("dropout") and options.get("position_bias") is None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if not simple or (late is None and (tokens > LONGEST or dtype != torch.bfloat16)):
        kernel: Callable[..., tuple[Tensor, None]] = AttentionInterface()["sdpa"]
        return kernel(module, query, key, value, attention_mask, scaling=scaling, **options)
    # Rotations leave float32 behind under autocast, where torch's own kernel would turn it back, too.
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    asked = query.transpose(1, 2) * (scaling or query.shape[3] ** -0.5)
    if late is None:
        return _attended(asked, key, value, _mask(tokens, query.dtype).expand(len(query), -1, -1)), None
    hidden = torch.arange(tokens, device=late.device) > late.unsqueeze(2)
    bias = torch.zeros_like(hidden, dtype=query.dtype).masked_fill_(hidden, float("-inf"))
    return _scattered(_attended(_gathered(asked, late), key, value, bias), late, tokens), None


def _attended(asked: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v.

    Args:
        asked: Scaled queries, shape (rows, positions, heads, width).
        key: Shape (rows, groups of heads, tokens, width).
        value: Like `key`.
        bias: 0 or minus infinity, shape (rows, positions, tokens).

    Returns:
        Shape (rows, positions, heads, width).
    """
    import torch

    rows, places, heads, width = asked.shape
    groups, tokens = key.shape[1], key.shape[2]
    shared, times = rows * groups, heads // groups
    # Heads that share keys are rows of one product.
    flat = asked.transpose(1, 2).reshape(shared, times * places, width)
    spread = bias.view(rows, 1, 1, places, tokens).expand(-1, groups, times, -1, -1).reshape(shared, -1, tokens)
    scores = torch.baddbmm(spread, flat, key.reshape(shared, tokens, width).mT)
    values = torch.bmm(scores.softmax(-1), value.reshape(shared, tokens, width))
    return values.view(rows, heads, places, width).transpose(1, 2)
