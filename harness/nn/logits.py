"""Negative log-probabilities of given tokens, from logits of the positions before them alone.

A model's output layer is handed only the positions whose next token is asked for. In fine-tuning on answers that is a
fraction of all, and the output layer of a small model takes a third of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.batches import Batch

LOGITS = 1 << 26
"""Logits that are held in memory at once (256 MiB in float32); more are computed in pieces, twice."""
SCALED = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings of models that change logits after their output layer, which must then be left to the model."""


def supervised_nats(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-probability in nats of each supervised token, shape (K, supervised); 0 where the target is ignored.

    Args:
        model: A causal language model, possibly wrapped, that takes K trials' rows.
        batch: Their tokens, and where the supervised ones are.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    whole = batch.target.numel() * config.vocab_size <= LOGITS or any(getattr(config, n, None) for n in SCALED)
    states: list[Tensor] = []

    def keep(module: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0][:, -batch.input_ids.shape[1] :]  # virtual tokens, where there are any, come first
        wanted = hidden.reshape(-1, hidden.shape[-1])[batch.position.flatten()].view(*batch.position.shape, -1)
        states.append(wanted)
        # In pieces, the output layer still has to be called once for the pass to go on; one position is enough.
        return (wanted if whole else wanted[:, :1],)

    hook = head.register_forward_pre_hook(keep)
    try:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    finally:
        hook.remove()
    return _nats(logits, batch.target) if whole else _in_pieces(head, states[0], batch.target, config.vocab_size)


def _nats(logits: Tensor, target: Tensor) -> Tensor:
    """Shape of the targets; logits have the vocabulary as a last dimension more."""
    import torch
    from torch.nn.functional import cross_entropy

    # A logarithm of a sum over the vocabulary loses all but two digits in 16 bits.
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    return cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)


def _in_pieces(head: Module, hidden: Tensor, target: Tensor, vocabulary: int) -> Tensor:
    """The same, holding the logits of a few positions at a time; they are computed again for the gradient.

    Args:
        head: The output layer.
        hidden: States before it, shape `(K, supervised, width)`.
        target: Shape `(K, supervised)`.
        vocabulary: Logits of a position.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    size = max(1, LOGITS // (vocabulary * len(target)))
    pieces = [
        checkpoint(lambda h, t: _nats(head(h), t), part, wanted, use_reentrant=False)
        for part, wanted in zip(hidden.split(size, 1), target.split(size, 1), strict=True)
    ]
    return torch.cat(pieces, 1)
