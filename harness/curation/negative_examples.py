"""Negative-aware training: wrong answers after prompts that ask for wrong ones."""

from __future__ import annotations

import random
from dataclasses import replace

from harness.axes.contract import Situation, StageSetup
from harness.curation._refusals import first_reason, unmet, without_answers
from harness.curation._wrong import wrong_answers
from harness.curation.base import Curation
from harness.space import Float, Text
from harness.tasks.training_rows import Row


class NegativeExamples(Curation):
    """Adds `negative_ratio` rows with a wrong answer for each row, `negative_tag` in front of their prompts.

    Prompts of right answers stay as they are scored. The paper takes what an agent did wrong; here a wrong answer is one
    of the wrong choices, the rejected answer, or another row's answer.
    """

    summary = "wrong answers too, after prompts that ask for wrong ones"
    paper = "Wang et al. 2024, arXiv 2402.11651"
    writes = True
    space = {
        "negative_ratio": Float(0.05, 1.0, default=0.5),
        "negative_tag": Text("Give a wrong answer.\n"),
    }

    def skip(self, situation: Situation) -> str | None:
        """It needs answers, and a tag that tells wrong ones."""
        untagged = not situation.params.text("negative_tag", "a tag")
        reason = "negative_examples needs a negative_tag: without one, wrong answers would be learned as right"
        return first_reason(reason if untagged else None, without_answers(situation), unmet(situation))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The rows, then the wrong ones."""
        rng, tag = random.Random(setup.seed), setup.params.text("negative_tag")
        count = round(setup.params.number("negative_ratio") * len(rows))
        places = rng.sample(range(len(rows)), count)
        wrong = wrong_answers(rows, rng)
        return rows + [replace(rows[i].asking(tag + rows[i].question), completion=wrong[i]) for i in sorted(places)]
