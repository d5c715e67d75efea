"""Selective token masking: no loss on tokens that the base finds too surprising."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.axes.contract import Situation, StageSetup
from harness.curation._likelihoods import base_nats
from harness.curation._refusals import without_token_loss
from harness.curation.base import Curation
from harness.nn.sequences import IGNORED, Example
from harness.space import Float


class PerplexityMask(Curation):
    """Takes the loss off tokens whose perplexity under the base is above `token_perplexity`.

    What is learned then moves the model little, which keeps what it knew (the paper's threshold is 2.5).
    """

    summary = "no loss on tokens that surprise the base"
    paper = "Wu et al. 2025, arXiv 2501.14315"
    space = {"token_perplexity": Float(1.1, 1000.0, default=2.5, log=True)}

    def skip(self, situation: Situation) -> str | None:
        """It needs a loss on tokens."""
        return without_token_loss(situation)

    def tokens(self, examples: list[Example], setup: StageSetup) -> list[Example]:
        """The examples with fewer labels; those without any are left out."""
        # A token's perplexity is the exponential of its nats.
        limit = math.log(setup.params.number("token_perplexity"))
        sequences = [sequence for (sequence,) in examples]
        kept: list[Example] = []
        before = after = 0
        for sequence, nats in zip(sequences, base_nats(sequences, setup), strict=True):
            labels = [
                IGNORED if nat > limit else label for label, nat in zip(sequence.labels, nats.tolist(), strict=True)
            ]
            before += sum(label != IGNORED for label in sequence.labels[1:])
            left = sum(label != IGNORED for label in labels[1:])
            after += left
            if left:
                kept.append((replace(sequence, labels=tuple(labels)),))
        setup.note(f"masking by perplexity kept {after} of {before} tokens, in {len(kept)} of {len(examples)} rows")
        return kept
