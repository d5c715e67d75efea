"""ORPO: imitate the chosen answer, and raise its odds against the rejected one; no base to compare with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.nn.sequences import Example, TokenLosses, TokenSequence
from harness.objectives._preference import PreferenceObjective, each, imitation, preference_trainer, side_by_side, split
from harness.objectives.base import TrainerParts
from harness.space import Float

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer


class OddsRatioPreferenceOptimisation(PreferenceObjective):
    """Next-token loss on chosen texts, prompts included as in TRL, less `odds_weight` times the log of a sigmoid.

    Of what: the log of the ratio of the odds of chosen and rejected answers, where an answer's probability is the
    geometric mean of its tokens'. Under gradient accumulation, the next-token loss is a mean of the batches' means.
    """

    summary = "imitate chosen answers and raise their odds against rejected ones"
    paper = "Hong et al. 2024, arXiv 2403.07691"
    compares = True
    learning_rate_scale = 0.4  # 8e-6 for full tuning, as Hong et al. took
    space = {"odds_weight": Float(0.05, 1.0, default=0.1, log=True)}

    def prepared(self, chosen: TokenSequence, rejected: TokenSequence) -> Example:
        """Loss on all of the chosen text, and on the rejected answer."""
        return (TokenSequence(chosen.input_ids, chosen.input_ids, chosen.prompt), rejected)

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over pairs, shape (K,)."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = split(losses.log_probabilities() / losses.lengths())
        odds = chosen - rejected - (_log_complement(chosen) - _log_complement(rejected))
        weight = each(setups, "odds_weight", odds)
        # As in CPO, a mean over tokens is multiplied by the pairs that `items` divides by.
        return imitation(losses) * (losses.sequences // 2) - (weight * logsigmoid(odds)).sum(1)

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's ORPO trainer on the same pairs."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TRL warns that this trainer is experimental
            from trl.experimental.orpo import ORPOConfig, ORPOTrainer
        setup = parts.setup
        arguments = ORPOConfig(
            **parts.arguments,
            beta=setup.params.number("odds_weight"),
            max_length=setup.params.integer("max_length"),
            gradient_checkpointing=False,
            remove_unused_columns=False,
        )

        examples = self.examples(parts.rows, setup)
        return preference_trainer(ORPOTrainer, arguments, parts, examples, partial(side_by_side, setup=setup))


def _log_complement(x: Tensor) -> Tensor:
    """`log(1 - exp(x))` of negative numbers."""
    import torch

    # Near zero 1 - exp(x) cancels, far from it 1 - exp(x) rounds to 1: each form is exact on its side of -log 2 (Maechler 2012).
    # The clamps keep the form that is not taken finite, whose gradient would else be NaN times zero.
    near = x > -math.log(2)
    return torch.where(near, (-x.clamp(min=-1.0).expm1()).log(), (-x.clamp(max=-0.5).exp()).log1p())
