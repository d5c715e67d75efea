"""GRPO: policy gradients of rewards, standardised within the group of answers to a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.objectives._reinforcement import SAMPLING, ReinforcementObjective
from harness.space import Choice, Float, Scalar

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments


class GroupRelativePolicyOptimisation(ReinforcementObjective):
    """An answer's advantage is its reward less its group's mean, by default over its group's standard deviation.

    `loss_type` says what token losses are divided by: dapo the batch's tokens (Yu et al. 2025, 2503.14476), grpo each
    answer's, dr_grpo the most tokens that answers may have (Liu et al. 2025, 2503.20783).
    """

    summary = "sample answers, reward them, reinforce by the reward standardised in the group"
    paper = "Shao et al. 2024, arXiv 2402.03300"
    space = SAMPLING | {
        "kl_weight": Float(0.0, 1.0, default=0.0, searched=False),
        "loss_type": Choice(("dapo", "grpo", "dr_grpo"), default="dapo", searched=False),
        "scale_rewards": Choice(("group", "batch", "none"), default="group", searched=False),
    }

    def kinds(self) -> tuple[type[Trainer], type[TrainingArguments]]:
        """TRL's trainer and its configuration."""
        from trl import GRPOConfig, GRPOTrainer

        return GRPOTrainer, GRPOConfig

    def options(self, setup: StageSetup) -> dict[str, Scalar]:
        """How losses and rewards are scaled."""
        return {name: setup.params[name] for name in ("loss_type", "scale_rewards")}
