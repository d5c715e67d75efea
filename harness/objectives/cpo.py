"""CPO: prefer the chosen answer to the rejected one while imitating it; no base to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.nn.sequences import TokenLosses
from harness.objectives._preference import PreferenceObjective, cpo_trainer, each, imitation, split
from harness.objectives.base import TrainerParts
from harness.space import Choice, Float, Scalar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer


class ContrastivePreferenceOptimisation(PreferenceObjective):
    """DPO's loss against a base that finds all answers equally likely, plus next-token loss on the chosen ones.

    `comparison` is the function of the difference of log-probabilities: sigmoid (the paper's), hinge (Zhao et al. 2023,
    2305.10425), or ipo (on means over tokens). Under gradient accumulation, the next-token loss is a mean of the
    batches' means.
    """

    summary = "prefer chosen to rejected answers and imitate the chosen ones, without a base"
    paper = "Xu et al. 2024, arXiv 2401.08417"
    compares = True
    same = ("comparison",)
    learning_rate_scale = 0.5  # 1e-4 for LoRA, as Xu et al. took
    space = {
        "comparison": Choice(("sigmoid", "hinge", "ipo"), default="sigmoid", searched=False),
        "beta": Float(0.01, 0.5, default=0.1, log=True),
        "imitation_weight": Float(0.0, 10.0, default=1.0, searched=False),
    }

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over pairs, shape (K,)."""
        from torch.nn.functional import logsigmoid

        kind, sums = setups[0].params.text("comparison"), losses.log_probabilities()
        chosen, rejected = split(sums / losses.lengths() if kind == "ipo" else sums)
        beta, weight = each(setups, "beta", sums), each(setups, "imitation_weight", sums)
        margin = chosen - rejected
        compared = -logsigmoid(beta * margin)
        if kind == "ipo":
            compared = (margin - 1 / (2 * beta)) ** 2
        elif kind == "hinge":
            compared = (1 - beta * margin).relu()
        # The imitation term is a mean over tokens, and `items` divides by pairs: it is multiplied by them here.
        return compared.sum(1) + weight[:, 0] * imitation(losses) * chosen.shape[1]

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's CPO trainer on the same pairs."""
        params = parts.setup.params
        options: dict[str, Scalar] = {
            "loss_type": params.text("comparison"),
            "cpo_alpha": params.number("imitation_weight"),
            "beta": params.number("beta"),
        }
        return cpo_trainer(parts, self.examples(parts.rows, parts.setup), options)
