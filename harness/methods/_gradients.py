"""Gradients of single training rows at the base, for methods that choose what to train by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.nn.sequences import TokenSequence

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel


def summed_nats(model: PreTrainedModel, sequence: TokenSequence) -> Tensor:
    """Negative log-likelihood of one row's supervised tokens in nats (scalar)."""
    import torch

    ids, labels = (torch.tensor([list(part)], device=model.device) for part in (sequence.input_ids, sequence.labels))
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")


def gradients(
    model: PreTrainedModel, weights: Sequence[Parameter], rows: Sequence[TokenSequence]
) -> Iterator[tuple[Tensor, ...]]:
    """Compute each row's gradient by itself, one backward pass per row.

    Args:
        model: A causal language model.
        weights: Parameters to take gradients for; whether they require gradients is afterwards as it was before.
        rows: Token ids and labels.

    Yields:
        Gradients of the row's summed loss in nats, one per weight, in the weight's shape.
    """
    import torch

    was = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        for row in rows:
            yield torch.autograd.grad(summed_nats(model, row), weights)
    finally:
        for weight, moved in zip(weights, was, strict=True):
            weight.requires_grad_(moved)
