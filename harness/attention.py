"""Attention for training in bfloat16 on a CPU, where torch's own kernel has a slow backward pass.

Measured on 64 rows of 100 tokens and 8 heads of 8 numbers, one thread: torch's flash kernel takes 122 ms for forward and
backward in bfloat16 (46 in float32), plain matrix products 23. Scores of all pairs are held in memory, so this is for
sequences of up to `LONGEST` tokens; longer ones, and whatever a model adds to plain causal attention, go to torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LONGEST = 512
NAME = "harness_causal"
"""Under which transformers knows it."""


@contextmanager
def quick_attention(model: PreTrainedModel) -> Iterator[None]:
    """Plain causal attention by matrix products inside, where the model uses torch's and adds nothing to it.

    No mask may be given meanwhile: rows are padded on the right, where a causal model does not look.
    """
    config = model.config.get_text_config()
    if not _is_plain(config):
        yield
        return
    _register()
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _is_plain(config: Any) -> bool:
    """Whether every layer attends to all that came before, through transformers' interface for attention kernels."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    others = ("sliding_window", "attn_logit_softcapping", "attention_chunk_size", "alibi")
    return (
        getattr(config, "_attn_implementation", None) == "sdpa"
        and kinds == {"full_attention"}
        and not any(getattr(config, name, None) for name in others)
    )


@cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, causal_attention)


@cache
def _mask(tokens: int, dtype: Any) -> Tensor:
    import torch

    return torch.full((tokens, tokens), float("-inf"), dtype=dtype).triu(1)


def causal_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v, every token seeing itself and what came before.

    Args:
        module: The attention layer.
        query: Shape (rows, heads, tokens, width).
        key: Shape (rows, groups of heads, tokens, width).
        value: Like `key`.
        attention_mask: None; anything else goes to torch's kernel.
        options: `scaling`, and what other kernels take.

    Returns:
        Shape (rows, tokens, heads, width), and None for the weights.
    """
    import torch
    from transformers import AttentionInterface

    rows, heads, tokens, width = query.shape
    if attention_mask is not None or options.get("dropout") or tokens > LONGEST or key.shape[2] != tokens:
        torchs: tuple[Tensor, None] = AttentionInterface()["sdpa"](module, query, key, value, attention_mask, **options)
        return torchs
    groups, scaling = key.shape[1], options.get("scaling") or width**-0.5
    shared = rows * groups
    # Heads that share keys are rows of one product.
    asked = (query * scaling).reshape(shared, -1, width)
    bias = _mask(tokens, query.dtype).repeat(heads // groups, 1)
    scores = torch.baddbmm(bias, asked, key.reshape(shared, tokens, width).mT)
    found = torch.bmm(scores.softmax(-1), value.reshape(shared, tokens, width)).view(rows, heads, tokens, width)
    return found.transpose(1, 2), None
