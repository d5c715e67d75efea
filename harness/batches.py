"""Which examples make up each optimiser step, and their tokens as tensors; for one trial or for K side by side.

Steps are drawn from an endless stream of shuffled passes, so that every step has exactly its number of examples. Within
windows of up to fifty steps of a pass, examples are sorted by length, so that little of a batch is padding, and then
moved by up to a step at random, so that another seed composes other steps. The steps of a window come in an order that
depends on its place and size only: trials with other seeds then meet batches of like length at the same step, and can
share a forward pass. What a step holds is a function of lengths, seed and step alone, so that a continuation needs no
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from harness.objectives.base import IGNORED, Example

if TYPE_CHECKING:
    from torch import Tensor

    from harness.plugins import StageSetup

WINDOW = 50
"""Most steps among which examples are sorted by length (Hugging Face's `group_by_length` used the same)."""


@lru_cache(maxsize=64)
def step_order(lengths: tuple[int, ...], per_step: int, steps: int, seed: int) -> np.ndarray:
    """Indices of the examples of every step, longest first within a step.

    Args:
        lengths: Tokens of each example.
        per_step: Examples of an optimiser step.
        steps: Optimiser steps at full budget.
        seed: Of the data order.

    Returns:
        Shape `(steps, per_step)`.
    """
    stream = _stream(len(lengths), steps * per_step, seed).reshape(steps, per_step)
    sizes = np.asarray(lengths)
    found = []
    for start, end in pairwise(_windows(len(lengths), per_step, steps)):
        drawn = stream[start:end].ravel()
        ranked = drawn[np.argsort(-sizes[drawn], kind="stable")]
        moved = np.arange(len(ranked)) + per_step * np.random.default_rng([seed, start, end]).random(len(ranked))
        composed = ranked[np.argsort(moved)].reshape(-1, per_step)
        longest_first = np.argsort(-sizes[composed], axis=1, kind="stable")
        composed = np.take_along_axis(composed, longest_first, 1)
        found.append(composed[np.random.default_rng([start, end]).permutation(end - start)])
    return np.concatenate(found)


def _windows(count: int, per_step: int, steps: int) -> list[int]:
    """Steps at which windows start, and the last one ends: none reaches over the end of a pass by a whole step.

    So no step holds an example twice, unless a pass ends in it.
    """
    passes = (min(steps, -(-number * count // per_step)) for number in range(steps * per_step // count + 2))
    found = [0]
    for start, end in pairwise(dict.fromkeys(passes)):
        parts = -(-(end - start) // WINDOW)
        found += [start + (end - start) * part // parts for part in range(1, parts + 1)]
    return found


def _stream(count: int, wanted: int, seed: int) -> np.ndarray:
    """Passes over `count` examples, each shuffled anew, cut to `wanted`."""
    passes = -(-wanted // count)
    return np.concatenate([np.random.default_rng([seed, n]).permutation(count) for n in range(passes)])[:wanted]


@dataclass(frozen=True)
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
    """Which of its trial's rows each is in, `rows` where there is none; shape `(K, supervised)`."""
    completion: Tensor
    """Whether it is of its row's completion rather than its prompt; shape `(K, supervised)`."""
    rows: int
    """Sequences per trial."""


def padding_id(setup: StageSetup) -> int:
    """The token id to fill batches up with."""
    padding = setup.tokenizer.pad_token_id
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
    found = []
    for member, sequences in enumerate(rows):
        positions, targets, owners, completes = [], [], [], []
        for row, sequence in enumerate(sequences):
            ids[member * count + row, : len(sequence.input_ids)] = sequence.input_ids
            labels = np.asarray(sequence.labels[1:], dtype=np.int64)
            at = np.flatnonzero(labels != IGNORED)
            positions.append(at + (member * count + row) * width)
            targets.append(labels[at])
            owners.append(np.full(len(at), row))
            completes.append(at + 1 >= sequence.prompt)
        found.append([np.concatenate(parts) for parts in (positions, targets, owners, completes)])
    supervised = max(len(part[1]) for part in found)
    filler = (0, IGNORED, count, False)
    position, target, sequence_of, completion = (
        torch.from_numpy(
            np.stack([np.pad(part[i], (0, supervised - len(part[i])), constant_values=filler[i]) for part in found])
        ).to(device)
        for i in range(4)
    )
    return Batch(torch.from_numpy(ids).to(device), lengths, position, target, sequence_of, completion, count)
