"""Which examples make up each optimiser step, and their tokens as tensors; for one trial or for K side by side.

Steps are drawn from an endless stream of shuffled passes, so that every step has exactly its number of examples. Which
examples share a step is left to chance: steps of like length would save padding, but were seen to learn less (sorting
letters, 60 steps: .02 of answers right, .11 by chance). Inside a step, the longest come first, so that a step can be
cut into forward passes of like length with the same loss (`cuts`). What a step holds is a function of seed and step
alone, so that a continuation needs no state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.nn.sequences import IGNORED, Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

OVERHEAD = {"cpu": 256, "cuda": 8192}
"""Tokens whose training takes as long as starting another forward and backward pass, about."""


@lru_cache(maxsize=64)
def step_order(lengths: tuple[int, ...], per_step: int, steps: int, seed: int) -> np.ndarray:
    """Indices of the examples of every step, longest first within a step.

    Args:
        lengths: Tokens of each example (of the longest sequence, where an example has several).
        per_step: Examples of an optimiser step.
        steps: Optimiser steps at full budget.
        seed: Of the data order.

    Returns:
        Shape `(steps, per_step)`.
    """
    order = _stream(len(lengths), steps * per_step, seed).reshape(steps, per_step)
    # A stable sort: examples of one length keep their drawn order, whatever numpy's default sort is.
    return np.take_along_axis(order, np.argsort(-np.asarray(lengths)[order], axis=1, kind="stable"), 1)


def cuts(members: Sequence[Sequence[Example]], device: str) -> list[slice]:
    """Where to cut the examples of a forward pass, so that padding and the start of another pass together cost least.

    Args:
        members: Each trial's examples, equally many, longest first.
        device: `cpu` or `cuda`.

    Returns:
        One to four parts of the examples, which follow each other.
    """
    count, sequences = len(members[0]), sum(len(examples[0]) for examples in members)
    longest = np.max([[max(len(s.input_ids) for s in example) for example in examples] for examples in members], axis=0)
    cheapest, best = np.inf, [slice(0, count)]
    for pieces in (1, 2, 3, 4):
        ends = [count * piece // pieces for piece in range(pieces + 1)]
        parts = [slice(start, end) for start, end in pairwise(ends) if end > start]
        padded = sum((part.stop - part.start) * int(longest[part].max()) for part in parts) * sequences
        cost = padded + len(parts) * OVERHEAD[device]
        if cost < cheapest:
            cheapest, best = cost, parts
    return best


def _stream(count: int, wanted: int, seed: int) -> np.ndarray:
    """Passes over `count` examples, each shuffled anew, cut to `wanted`."""
    passes = math.ceil(wanted / count)
    return np.concatenate([np.random.default_rng([seed, n]).permutation(count) for n in range(passes)])[:wanted]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """K trials' examples of one forward pass, rows of the same trial together (member-major)."""

    input_ids: Tensor
    """Shape `(K * rows, tokens)`, padded on the right: in a causal model nothing sees what comes after it, so no mask."""
    lengths: tuple[int, ...]
    """Tokens of each trial's longest sequence: what it would be padded to alone."""
    position: Tensor
    """Flat positions, in `(K * rows * tokens)`, whose next token is supervised; shape `(K, supervised)`."""
    target: Tensor
    """Those next tokens, `IGNORED` where a trial has fewer than another; shape `(K, supervised)`."""
    sequence: Tensor
    """Which of its trial's rows each target is in, `rows` where there is no target; shape `(K, supervised)`."""
    completion: Tensor
    """Whether each target belongs to its row's completion rather than its prompt; shape `(K, supervised)`."""
    rows: int
    """Sequences per trial."""
    scores: Tensor
    """Score of each sequence; shape `(K, rows)`."""


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id to fill batches up with; nothing looks there, so any that the model has will do (see `load_tokenizer`)."""
    padding = tokenizer.pad_token_id
    return 0 if padding is None else int(padding)


def collate(members: Sequence[Sequence[Example]], padding: int, device: str) -> Batch:
    """Put K trials' examples, equally many sequences each, into one batch.

    Args:
        members: Each trial's examples.
        padding: Token id to fill up with.
        device: Where the tensors go.
    """
    import torch

    rows = [[s for example in examples for s in example] for examples in members]
    lengths = tuple(max(len(s.input_ids) for s in sequences) for sequences in rows)
    width, count = max(lengths), len(rows[0])
    ids = np.full((len(rows) * count, width), padding, dtype=np.int64)
    columns = []  # of each trial: positions, targets, owners and completions of its supervised tokens
    for member, sequences in enumerate(rows):
        positions, targets, owners, completions = [], [], [], []
        for row, sequence in enumerate(sequences):
            ids[member * count + row, : len(sequence.input_ids)] = sequence.input_ids
            labels = np.asarray(sequence.labels[1:], dtype=np.int64)
            at = np.flatnonzero(labels != IGNORED)
            positions.append(at + (member * count + row) * width)
            targets.append(labels[at])
            owners.append(np.full(len(at), row))
            completions.append(at + 1 >= sequence.prompt)
        columns.append([np.concatenate(parts) for parts in (positions, targets, owners, completions)])
    supervised = max(len(targets) for _, targets, _, _ in columns)

    def padded(column: int, filler: int) -> Tensor:
        """A column of all trials, shape `(K, supervised)`."""
        parts = [own[column] for own in columns]
        parts = [np.pad(part, (0, supervised - len(part)), constant_values=filler) for part in parts]
        return torch.from_numpy(np.stack(parts)).to(device)

    return Batch(
        input_ids=torch.from_numpy(ids).to(device),
        lengths=lengths,
        position=padded(0, 0),
        target=padded(1, IGNORED),
        sequence=padded(2, count),
        completion=padded(3, False),
        rows=count,
        scores=torch.tensor([[s.score for s in sequences] for sequences in rows], device=device),
    )
