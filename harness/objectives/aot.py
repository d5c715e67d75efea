"""AOT: preferences as a whole, comparing sorted log-ratios of a batch rather than answer with answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.nn.sequences import TokenLosses
from harness.objectives._preference import PreferenceObjective, dpo_trainer, each, split
from harness.objectives.base import TrainerParts
from harness.space import Choice, Float, Params

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer


class AlignmentByOptimalTransport(PreferenceObjective):
    """DPO's loss between quantiles of a forward pass.

    `pairing` paired: the pairs' log-ratios of chosen to rejected answers, sorted, against the base's, sorted. Unpaired:
    chosen answers' log-ratios to the base, sorted, against those of rejected answers, sorted.
    """

    summary = "DPO between the sorted log-ratios of a batch: preference as a whole"
    paper = "Melnyk et al. 2024, arXiv 2406.05882"
    compares = True
    needs_reference = True
    same = ("pairing",)
    learning_rate_scale = 0.1  # as DPO
    space = {
        "pairing": Choice(("paired", "unpaired"), default="paired", searched=False),
        "beta": Float(0.01, 0.5, default=0.1, log=True),
        "label_smoothing": Float(0.0, 0.3, default=0.0, searched=False),
    }

    def unfit(self, params: Params) -> str | None:
        """A single row sorts nothing."""
        one_row = params.integer("batch_size", 2) < 2
        return "its objective sorts the rows of a batch, but batch_size is 1: raise it" if one_row else None

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over pairs, shape (K,)."""
        from torch.nn.functional import logsigmoid

        assert losses.reference is not None
        if setups[0].params.text("pairing") == "unpaired":
            better, worse = split(losses.log_ratios())
        else:
            (chosen, rejected), (known, lesser) = split(losses.log_probabilities()), split(losses.reference)
            better, worse = chosen - rejected, known - lesser
        beta, wrong = (each(setups, name, better) for name in ("beta", "label_smoothing"))
        margin = beta * (better.sort(1).values - worse.sort(1).values)
        return -((1 - wrong) * logsigmoid(margin) + wrong * logsigmoid(-margin)).sum(1)

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's DPO trainer on the same pairs."""
        params = parts.setup.params
        own = {name: params[name] for name in ("beta", "label_smoothing")}
        own["loss_type"] = "aot" if params.text("pairing") == "paired" else "aot_unpaired"
        return dpo_trainer(parts, self.examples(parts.rows, parts.setup), **own)
