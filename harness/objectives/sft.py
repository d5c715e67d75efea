"""Supervised fine-tuning: imitate the completion, given the prompt."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from harness.objectives._language_model import sequences, sft_trainer
from harness.objectives.base import Objective, TrainerParts

if TYPE_CHECKING:
    from transformers import Trainer


class SupervisedFineTuning(Objective):
    """Next-token loss on completions; prompts carry none."""

    summary = "next-token loss on the completions"
    paper = "Wei et al. 2021, arXiv 2109.01652"
    fuses = True

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's SFT trainer on one sequence per row; rows that a stage shorter than a pass will not reach are left out."""
        setup, rows = parts.setup, parts.rows
        seen = setup.steps * int(setup.params["batch_size"]) * int(setup.params["gradient_accumulation"])
        if seen < len(rows):
            rows = random.Random(setup.seed).sample(rows, seen)
        return sft_trainer(parts, sequences(rows, setup))
