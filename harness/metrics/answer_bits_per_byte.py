"""How unlikely a model finds the right answer, whatever its length."""

from __future__ import annotations

import math

from harness.metrics.base import Answered, Measure, Surprise


class AnswerBitsPerByte(Measure):
    """Bits of an answer given its prompt, divided by the answer's bytes in UTF-8; lower is better.

    lm-eval's `perplexity` takes an answer as a whole, so that one long answer outweighs all short ones.
    """

    summary = "bits that the right answer takes, per byte of it"
    paper = "after Gao et al. 2020, arXiv 2101.00027"
    output_types = ("loglikelihood",)
    higher_is_better = False
    surprise = Surprise.BITS

    def item(self, answered: Answered) -> float:
        """Of one answer; white space around it does not count as length."""
        (nats,), answer = answered.answers, answered.choices[answered.gold].strip()
        return float(-nats / math.log(2) / max(1, len(answer.encode())))
