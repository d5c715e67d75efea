"""SimPO: prefer the chosen answer's mean log-probability to the rejected one's by a margin; no base to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.nn.sequences import TokenLosses
from harness.objectives._preference import PreferenceObjective, cpo_trainer, each, split
from harness.objectives.base import TrainerParts
from harness.space import Float, Scalar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer


class SimplePreferenceOptimisation(PreferenceObjective):
    """Minus the log of a sigmoid of `sharpness` times the difference of means over tokens, less `target_margin`."""

    summary = "prefer chosen answers per token by a margin, without a base"
    paper = "Meng et al. 2024, arXiv 2405.14734"
    learning_rate_scale = 0.05  # 1e-6 for full tuning; the authors searched 3e-7 to 1e-6
    space = {
        "sharpness": Float(0.5, 10.0, default=2.0, log=True),
        "target_margin": Float(0.0, 5.0, default=1.0),
    }

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over pairs, shape (K,)."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = split(losses.log_probabilities() / losses.lengths())
        sharpness, margin = (each(setups, name, chosen) for name in ("sharpness", "target_margin"))
        return -logsigmoid(sharpness * (chosen - rejected) - margin).sum(1)

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's CPO trainer on the same pairs, without its next-token loss."""
        params = parts.setup.params
        options: dict[str, Scalar] = {
            "loss_type": "simpo",
            "cpo_alpha": 0.0,
            "beta": params.number("sharpness"),
            "simpo_gamma": params.number("target_margin"),
        }
        return cpo_trainer(parts, self.examples(parts.rows, parts.setup), options)
