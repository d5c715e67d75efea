"""Batches of training rows for methods whose factors start from what data say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.axes.encoding import learnable, tokenised
from harness.errors import SpecError
from harness.nn.batches import padding_id
from harness.nn.sequences import TokenSequence
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from torch import Tensor

BATCH = 8
"""Rows of a batch."""


def drawn(rows: Sequence[Row], count: int, setup: StageSetup) -> list[TokenSequence]:
    """Draw calibration rows and tokenise them.

    Args:
        rows: Rows to draw from.
        count: How many are drawn, if there are so many; the same ones for the same seed.
        setup: The stage's seed, tokenizer and `max_length`.

    Returns:
        Those of them that have a token with loss.

    Raises:
        SpecError: When there is none.
    """
    chosen = random.Random(setup.seed).sample(rows, min(count, len(rows)))
    sequences = [sequence for sequence in tokenised(chosen, setup, "calibration rows") if learnable(sequence)]
    if not sequences:
        raise SpecError("calibration needs at least one row with something to learn, but there is none: check the task")
    return sequences


def batches(sequences: Sequence[TokenSequence], setup: StageSetup, size: int = BATCH) -> list[dict[str, Tensor]]:
    """Batches as a causal model of transformers takes them, padded on the right.

    Args:
        sequences: Token ids and labels of rows.
        setup: The stage's tokenizer and device.
        size: Rows of a batch.

    Returns:
        `input_ids`, `attention_mask` and `labels` of each batch, shape (rows, tokens).
    """
    import torch

    padding = padding_id(setup.tokenizer)
    tensors = []
    for start in range(0, len(sequences), size):
        part = sequences[start : start + size]
        width = max(len(sequence.input_ids) for sequence in part)
        columns = (
            [[*s.input_ids, *[padding] * (width - len(s.input_ids))] for s in part],
            [[1] * len(s.input_ids) + [0] * (width - len(s.input_ids)) for s in part],
            [[*s.labels, *[-100] * (width - len(s.labels))] for s in part],  # the label that torch's loss ignores
        )
        names = ("input_ids", "attention_mask", "labels")
        tensors.append({k: torch.tensor(v, device=setup.device) for k, v in zip(names, columns, strict=True)})
    return tensors
