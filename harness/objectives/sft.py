"""Supervised fine-tuning: imitate the completion, given the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.objectives._language_model import sequences, sft_trainer
from harness.objectives.base import Objective, TrainerParts

if TYPE_CHECKING:
    from transformers import Trainer


class SupervisedFineTuning(Objective):
    """Next-token loss on completions; prompts carry none."""

    summary = "next-token loss on the completions"
    paper = "Wei et al. 2021, arXiv 2109.01652"

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's SFT trainer on one sequence per row."""
        return sft_trainer(parts, sequences(parts.rows, parts.setup))
