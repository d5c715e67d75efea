"""Prefix fine-tuning: loss on the first tokens of each answer only."""

from __future__ import annotations

import random
from dataclasses import replace

from harness.axes.contract import Situation, StageSetup
from harness.curation._refusals import first_reason, packed, without_token_loss
from harness.curation.base import Curation
from harness.nn.sequences import IGNORED, Example, TokenSequence
from harness.space import Float, Integer


class FirstTokens(Curation):
    """Answers are cut after `prefix_tokens` tokens, but for a share `whole_answers` of the rows.

    Of a chat's earlier answers, which stay where they are, as many tokens are learned.

    The paper samples the answers from the model itself, without labels; here they are the task's own.
    """

    summary = "loss on the first tokens of each answer"
    paper = "Ji et al. 2025, arXiv 2503.02875"
    space = {
        "prefix_tokens": Integer(1, 512, default=8, log=True),
        "whole_answers": Float(0.0, 0.9, default=0.1, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """It needs a loss on tokens, and answers that begin where rows do."""
        return first_reason(without_token_loss(situation), packed(situation))

    def tokens(self, examples: list[Example], setup: StageSetup) -> list[Example]:
        """The examples with shorter answers."""
        wanted = setup.params.integer("prefix_tokens")
        count = round(setup.params.number("whole_answers") * len(examples))
        whole = set(random.Random(setup.seed).sample(range(len(examples)), count))
        shorter: list[Example] = []
        for index, (sequence,) in enumerate(examples):
            shorter.append((sequence if index in whole else _shortened(sequence, wanted),))
        shortened = sum(new != old for new, old in zip(shorter, examples, strict=True))
        setup.note(f"{shortened} of {len(examples)} answers were cut to their first {wanted} tokens")
        return [example for example in shorter if any(label != IGNORED for label in example[0].labels[1:])]


def _shortened(sequence: TokenSequence, wanted: int) -> TokenSequence:
    """A row whose last answer ends after some tokens, and of whose earlier answers as many are learned."""
    # Nothing predicts the first token of a text, so its answer begins at the second.
    border = max(sequence.prompt, 1)
    labels, run = list(sequence.labels[: border + wanted]), 0
    for place in range(min(sequence.prompt, len(labels))):
        run = run + 1 if labels[place] != IGNORED else 0
        if run > wanted:
            labels[place] = IGNORED
    return replace(sequence, input_ids=sequence.input_ids[: border + wanted], labels=tuple(labels))
