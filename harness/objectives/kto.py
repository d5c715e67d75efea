"""KTO: answers as gains and losses against what the model says on average, each judged by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.nn.sequences import IGNORED, Example, TokenLosses, TokenSequence
from harness.objectives._preference import PreferenceObjective, answers_of, each, padded, preference_trainer, split
from harness.objectives.base import TrainerParts
from harness.space import Float, Params

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Trainer


class KahnemanTverskyOptimisation(PreferenceObjective):
    """A row gives a desirable and an undesirable answer, whose values saturate around a common reference point.

    The reference point is the divergence from the base, estimated per forward pass from mismatched pairs: each prompt
    with the answers of the pass's previous row. It carries no gradient and is never negative.
    """

    summary = "desirable and undesirable answers, judged one by one against the base"
    paper = "Ethayarajh et al. 2024, arXiv 2402.01306"
    compares = True
    needs_reference = True
    learning_rate_scale = 0.1  # 2e-6 for full tuning, within the 5e-7 to 5e-6 that the authors advise
    space = {
        "beta": Float(0.01, 0.5, default=0.1, log=True),
        "desirable_weight": Float(0.1, 10.0, default=1.0, log=True, searched=False),
        "undesirable_weight": Float(0.1, 10.0, default=1.0, log=True, searched=False),
    }

    def unfit(self, params: Params) -> str | None:
        """A single row mismatches nothing."""
        one_row = params.integer("batch_size", 2) < 2
        return "its objective mismatches the rows of a batch, but batch_size is 1: raise it" if one_row else None

    def apart(self, examples: Sequence[Example], setup: StageSetup) -> list[Example]:
        """Every prompt with the answers of the row before."""
        limit = setup.params.integer("max_length")
        return [
            tuple(_joined(own, other, limit) for own, other in zip(example, examples[number - 1], strict=True))
            for number, example in enumerate(examples)
        ]

    def items(self, examples: Sequence[Example]) -> int:
        """The loss is a mean over answers."""
        return 2 * len(examples)

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over answers, shape (K,)."""
        assert losses.apart is not None
        ratios = losses.log_ratios()
        point = losses.apart.log_ratios().mean(1, keepdim=True).detach().clamp(min=0)
        names = ("beta", "desirable_weight", "undesirable_weight")
        beta, gain, pain = (each(setups, name, ratios) for name in names)
        chosen, rejected = split(ratios)
        desirable, undesirable = (beta * (point - chosen)).sigmoid(), (beta * (rejected - point)).sigmoid()
        return (gain * desirable + pain * undesirable).sum(1)

    def trainer(self, parts: TrainerParts) -> Trainer:
        """TRL's KTO trainer on the same answers, as many at a time."""
        import torch
        from trl import KTOConfig, KTOTrainer

        params, setup = parts.setup.params, parts.setup
        arguments = KTOConfig(
            **parts.arguments,
            **{name: params[name] for name in self.space},
            gradient_checkpointing=False,
            remove_unused_columns=False,
        )

        def batch(examples: Sequence[Example]) -> dict[str, Tensor]:
            columns = padded(answers_of(examples), setup)
            columns |= padded(answers_of(self.apart(examples, setup)), setup, "KL_")
            # TRL makes labels itself and hands all other parts of a batch to the model, which would get them twice.
            del columns["labels"], columns["KL_labels"]
            return columns | {"label": torch.arange(2 * len(examples)) < len(examples)}

        examples = self.examples(parts.rows, setup)
        return preference_trainer(KTOTrainer, arguments, parts, examples, batch, ref_model=setup.load_base())


def _joined(own: TokenSequence, other: TokenSequence, limit: int) -> TokenSequence:
    """One sequence's prompt with another's answer, cut to its last `limit` tokens."""
    prompt, answer = own.input_ids[: own.prompt], other.input_ids[other.prompt :]
    return TokenSequence(prompt + answer, (IGNORED,) * len(prompt) + answer, len(prompt)).last(limit)
