"""Supervised fine-tuning: imitate the completion, given the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.axes.encoding import reached, sequences
from harness.nn.sequences import Example
from harness.objectives._language_model import sft_trainer
from harness.objectives.base import Objective, TrainerParts
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from transformers import Trainer


class SupervisedFineTuning(Objective):
    """Next-token loss on completions; prompts carry none."""

    summary = "next-token loss on the completions"
    paper = "Wei et al. 2021, arXiv 2109.01652"
    fuses = True
    supervises_tokens = True

    def examples(self, rows: Sequence[Row], setup: StageSetup) -> list[Example]:
        """One sequence per row; rows that a stage shorter than a pass will not reach are left out."""
        return [(sequence,) for sequence in sequences(reached(rows, setup), setup)]

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's SFT trainer on the same sequences."""
        return sft_trainer(parts, self.examples(parts.rows, parts.setup))
