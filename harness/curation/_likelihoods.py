"""What a model says of every token of a text, and a short training that makes a model to compare with."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.axes.contract import StageSetup
from harness.axes.encoding import tokenised
from harness.errors import StorageError
from harness.files import write_atomically
from harness.nn.sequences import IGNORED, TokenSequence
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LOGITS = 1 << 25
"""The most logits of a forward pass: 128 MiB in float32."""


def token_nats(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
    """Negative log-probability of every token given those before it, in nats; 0 for the first, which nothing predicts.

    Args:
        model: A causal language model; it is left in evaluation mode.
        sequences: Tokens; their labels are not looked at.

    Returns:
        One float32 array of shape (tokens,) for each sequence.
    """
    import torch

    model.eval()
    nats_of: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(sequences)
    for places in _batches([len(s.input_ids) for s in sequences], int(model.config.vocab_size)):
        with torch.no_grad():
            nats = _nats(model, [sequences[place] for place in places]).float().cpu().numpy()
        for place, row in zip(places, nats, strict=True):
            size = len(sequences[place].input_ids)
            nats_of[place] = np.concatenate([np.zeros(1, dtype=np.float32), row[: size - 1]])
    return nats_of


def base_nats(sequences: Sequence[TokenSequence], setup: StageSetup) -> list[np.ndarray]:
    """`token_nats` under the stage's base, kept in a file for the next trial on the same base and sequences.

    Args:
        sequences: Tokens; their labels are not looked at.
        setup: The stage's.

    Returns:
        One float32 array of shape (tokens,) for each sequence.
    """
    path = _place(sequences, setup)
    ends = np.cumsum([len(s.input_ids) for s in sequences])
    if path is not None and path.is_file():
        try:
            return np.split(np.load(path, allow_pickle=False), ends[:-1])
        except (OSError, ValueError):
            pass  # a crash left part of a file: computed again
    nats = token_nats(setup.load_base(), sequences)
    if path is not None:
        # One array for all sequences: a file for each would be slow to open.
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(nats))
        try:
            write_atomically(path, buffer.getvalue())
        except StorageError:  # what can be computed again must not stop a trial
            path.unlink(missing_ok=True)
    return nats


def answer_nats(rows: Sequence[Row], setup: StageSetup) -> list[float]:
    """How unlikely the base finds each row's completion.

    Args:
        rows: Prompts and completions.
        setup: The stage's.

    Returns:
        Mean nats per token of each completion; NaN where it has no token to learn.
    """
    sequences = tokenised(rows, setup)
    means = []
    for sequence, nats in zip(sequences, base_nats(sequences, setup), strict=True):
        counted = np.array(sequence.labels[1:]) != IGNORED
        means.append(float(nats[1:][counted].mean()) if counted.any() else float("nan"))
    return means


def train_briefly(
    model: PreTrainedModel, sequences: Sequence[TokenSequence], rate: float, seed: int, batch: int = 16
) -> None:
    """One pass of AdamW over the sequences at a constant rate, on all weights; loss where their labels are.

    Args:
        model: Changed in place.
        sequences: Tokens with labels.
        rate: The learning rate.
        seed: Of the order.
        batch: Sequences of an optimiser step.
    """
    import torch

    order = np.random.default_rng(seed).permutation(len(sequences))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.requires_grad_(True).eval()  # without dropout: the base that it is compared with has none either
    for start in range(0, len(order), batch):
        step = [sequences[index] for index in order[start : start + batch]]
        # Losses of the pieces add up to the mean over the step's tokens, however it is cut.
        total = sum(label != IGNORED for sequence in step for label in sequence.labels[1:])
        for places in _batches([len(s.input_ids) for s in step], int(model.config.vocab_size)):
            piece = [step[place] for place in places]
            nats = _nats(model, piece)
            counted = [[float(label != IGNORED) for label in s.labels[1:]] for s in piece]
            weights = [own + [0.0] * (nats.shape[1] - len(own)) for own in counted]
            ((nats * torch.tensor(weights, device=nats.device)).sum() / max(1, total)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def _nats(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> Tensor:
    """Shape (sequences, tokens - 1), padded on the right: a causal model sees nothing of that."""
    import torch

    longest = max(len(s.input_ids) for s in sequences)
    ids = torch.tensor([[*s.input_ids, *[0] * (longest - len(s.input_ids))] for s in sequences], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    log_probabilities: Tensor = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return -log_probabilities


def _batches(lengths: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
    """Indices of sequences of like length, longest first, whose logits fit."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    # Longest first, so that too little memory shows at once and not after an hour.
    while order:
        size = max(1, LOGITS // (vocabulary * lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def _place(sequences: Sequence[TokenSequence], setup: StageSetup) -> Path | None:
    if setup.cache is None or not setup.base:
        return None
    digest = hashlib.sha256(setup.base.encode())
    for sequence in sequences:
        digest.update(np.array([len(sequence.input_ids), *sequence.input_ids], dtype=np.int32).tobytes())
    return setup.cache / f"nats_{digest.hexdigest()[:32]}.npy"
