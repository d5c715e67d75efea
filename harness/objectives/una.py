"""UNA: an answer's implicit reward meets its score, whether that is a number, a thumb or a place in a pair."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import learnable, reached, tokenised
from harness.errors import SpecError, one_of
from harness.nn.sequences import Example, TokenLosses, TokenSequence
from harness.objectives._preference import PreferenceObjective, each
from harness.space import Choice, Float
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from torch import Tensor


class UnifiedAlignment(PreferenceObjective):
    """Pulls the sigmoid of `beta` times an answer's log-ratio to the base towards the answer's score in [0, 1].

    Scores are those of the column that the task names in `metadata.score`, one answer per row; a task without it gives
    pairs, whose chosen answers score 1 and rejected ones 0. `distance` is cross-entropy or the squared difference.
    """

    summary = "draw each answer's implicit reward to its score"
    paper = "Wang et al. 2024, arXiv 2408.15339"
    needs_reference = True
    same = ("distance",)
    learning_rate_scale = 0.1  # as DPO: the authors took 5e-6 to 3e-5 for LoRA
    space = {
        "distance": Choice(("cross_entropy", "squared"), default="cross_entropy", searched=False),
        "beta": Float(0.005, 0.5, default=0.03, log=True),
    }

    def skip(self, situation: Situation) -> str | None:
        """Answers need scores: of their own, or by being chosen or rejected."""
        metadata = situation.task.metadata
        return None if metadata is not None and metadata.score else super().skip(situation)

    def examples(self, rows: Sequence[Row], setup: StageSetup) -> list[Example]:
        """One answer per row with its score, or one pair.

        Raises:
            SpecError: When a row has neither a score in [0, 1] nor a rejected answer.
        """
        column = setup.task_metadata.score
        if column is None:
            return super().examples(rows, setup)
        rows = reached(rows, setup)
        scores = [_score(row, column) for row in rows]
        answers = zip(tokenised(rows, setup), scores, strict=True)
        examples: list[Example] = [(replace(answer, score=score),) for answer, score in answers if learnable(answer)]
        if len(examples) < len(rows):
            setup.note(
                f"{len(rows) - len(examples)} of {len(rows)} training rows had nothing to learn and were dropped"
            )
        return examples

    def prepared(self, chosen: TokenSequence, rejected: TokenSequence) -> Example:
        """The chosen answer with score 1, the rejected one with score 0."""
        return (replace(chosen, score=1.0), replace(rejected, score=0.0))

    def items(self, examples: Sequence[Example]) -> int:
        """The loss is a mean over answers."""
        return sum(map(len, examples))

    def loss(self, losses: TokenLosses, setups: Sequence[StageSetup]) -> Tensor:
        """Each trial's loss, summed over answers, shape (K,)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        assert losses.scores is not None
        ratios = losses.log_ratios()
        rewards, scores = each(setups, "beta", ratios) * ratios, losses.scores.to(ratios)
        if setups[0].params.text("distance") == "squared":
            return ((rewards.sigmoid() - scores) ** 2).sum(1)
        return binary_cross_entropy_with_logits(rewards, scores, reduction="none").sum(1)


def _score(row: Row, column: str) -> float:
    if column not in row.doc:
        raise SpecError("metadata.score: " + one_of("column", column, list(row.doc)))
    value = row.doc[column]
    with suppress(ValueError):  # a cell of a CSV file is a text
        value = float(value) if isinstance(value, str) else value
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise SpecError(f"scores must lie in [0, 1], but {column} of row {row.prompt[:40]!r} is {value!r}: scale them")
    return float(value)
