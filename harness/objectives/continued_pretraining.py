"""Continued pretraining: next-token loss on all of the text, packed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.axes.encoding import documents
from harness.nn.sequences import Example, TokenSequence
from harness.objectives._language_model import sft_trainer
from harness.objectives.base import Objective, TrainerParts
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from transformers import Trainer


class ContinuedPretraining(Objective):
    """Prompt and completion as one document; documents in random order are joined and cut to `max_length` tokens."""

    summary = "next-token loss on whole texts, packed into full sequences"
    paper = "Gururangan et al. 2020, arXiv 2004.10964"
    fuses = True
    supervises_tokens = True
    packs = True

    def examples(self, rows: Sequence[Row], setup: StageSetup) -> list[Example]:
        """Blocks of one long stream of tokens."""
        texts = [row.text for row in rows]
        # Shuffled before they are joined: blocks keep their neighbours, and a file's order may group like texts.
        random.Random(setup.seed).shuffle(texts)
        stream = list(chain.from_iterable(documents(texts, setup)))
        size = setup.params.integer("max_length")
        blocks = [tuple(stream[start : start + size]) for start in range(0, len(stream), size)]
        # A block of one token predicts nothing.
        return [(TokenSequence(block, block),) for block in blocks if len(block) > 1]

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's SFT trainer on the same blocks."""
        return sft_trainer(parts, self.examples(parts.rows, parts.setup))
