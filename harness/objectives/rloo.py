"""RLOO: policy gradients of rewards, each answer beside the mean of its group's others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.objectives._reinforcement import SAMPLING, ReinforcementObjective
from harness.space import Float

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


class LeaveOneOut(ReinforcementObjective):
    """REINFORCE with the mean reward of a group's other answers as the baseline of each.

    `kl_weight` times an answer's log-ratio to the stage's base is taken off its reward. With a reward model from an
    earlier stage this is RLHF.
    """

    summary = "sample answers, reward them, reinforce those above the rest of their group"
    paper = "Ahmadian et al. 2024, arXiv 2402.14740"
    space = SAMPLING | {"kl_weight": Float(0.0, 1.0, default=0.05)}

    def kinds(self) -> tuple[type[Trainer], type[TrainingArguments]]:
        """TRL's trainer and its configuration."""
        from trl import RLOOConfig, RLOOTrainer

        return RLOOTrainer, RLOOConfig
