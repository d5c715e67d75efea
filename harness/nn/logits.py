"""Negative log-probabilities of given tokens, from logits of the positions before them alone.

A model's output layer is handed only the positions whose next token is asked for. In fine-tuning on answers that is a
fraction of all, and the output layer of a small model takes a third of a step. Whether a kind of model bears that is
found out at its first batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.nn.ways import Ways, agree, compared, ways_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.batches import Batch

LOGITS = 1 << 26
"""Logits that are held in memory at once (256 MiB in float32); more are computed in pieces, twice."""
FEWEST = 16
"""Tokens of a row that a model's output layer is tried on at least."""


def supervised_nats(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Negative log-probability in nats of each supervised token, shape (K, supervised); 0 where the target is ignored.

    Args:
        model: A causal language model, possibly wrapped, that takes K trials' rows.
        batch: Their tokens, and where the supervised ones are.
    """
    ways, vocabulary = _tried(model, batch), model.config.get_text_config().vocab_size
    if not ways.picks:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
        return _nats(_at(logits, batch.input_ids.shape[1], batch.position), batch.target)
    whole = batch.target.numel() * vocabulary <= LOGITS or not ways.direct
    logits, hidden = _picked(model, batch.input_ids, batch.position, whole)
    return _nats(logits, batch.target) if whole else _in_pieces(_head(model), hidden, batch.target, vocabulary)


def _tried(model: PreTrainedModel, batch: Batch) -> Ways:
    """The model's ways; where nothing is known of its output layer yet, it is tried on each trial's first row."""
    ways = ways_of(model)
    if ways.picks is None:
        size = LOGITS // (len(batch.target) * model.config.get_text_config().vocab_size)
        ids = batch.input_ids[:: batch.rows, : max(FEWEST, size)]
        ways.picks, ways.direct = compared(model, lambda: _output_ways(model, ids), (False, False))
    return ways


def _output_ways(model: PreTrainedModel, ids: Tensor) -> tuple[bool, bool]:
    """Whether a model's output layer may be handed some positions only, and whether nothing changes what it gives.

    Args:
        model: A causal language model.
        ids: Rows of tokens, shape (rows, tokens).
    """
    import torch

    head, given = model.get_output_embeddings(), []
    if head is None:
        return False, False
    hook = head.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    # Exactly, since the caps of small logits are small, too, and grow while the model is trained.
    direct = len(given) == 1 and torch.equal(head(given[0]).float(), logits.float())
    rows, tokens = ids.shape
    position = torch.arange(0, tokens, 2, device=ids.device) + torch.arange(rows, device=ids.device)[:, None] * tokens
    picked, _ = _picked(model, ids, position, True)
    return agree(picked.log_softmax(-1), _at(logits, tokens, position).log_softmax(-1)), direct


def _picked(model: PreTrainedModel, ids: Tensor, position: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    """Logits at some positions, whose states alone are handed to the output layer, and those states.

    Args:
        model: A causal language model.
        ids: Shape (rows, tokens).
        position: Flat positions in the rows, shape (K, positions).
        whole: Whether logits are wanted at all of them; otherwise at the first, since the output layer still has to
            be called once for the pass to go on.
    """
    states: list[Tensor] = []

    def keep(module: Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states.append(_at(arguments[0], ids.shape[1], position))
        return (states[0] if whole else states[0][:, :1],)

    hook = _head(model).register_forward_pre_hook(keep)
    try:
        return model(input_ids=ids, use_cache=False).logits, states[0]
    finally:
        hook.remove()


def _head(model: PreTrainedModel) -> Module:
    head: Module = model.get_output_embeddings()
    return head


def _at(states: Tensor, tokens: int, position: Tensor) -> Tensor:
    """States of shape (rows, tokens, size) at flat positions (K, positions): (K, positions, size)."""
    states = states[:, -tokens:]  # virtual tokens, where there are any, come first
    return states.reshape(-1, states.shape[-1])[position.flatten()].view(*position.shape, -1)


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
