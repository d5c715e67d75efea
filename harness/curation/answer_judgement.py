"""Rows that ask whether an answer is right: what an evaluator of solutions is trained on."""

from __future__ import annotations

import random

from harness.axes.contract import Situation, StageSetup
from harness.curation._refusals import first_reason, unmet, without_answers
from harness.curation._wrong import after, wrong_answers
from harness.curation.base import Curation
from harness.space import Text
from harness.tasks.training_rows import Row


class AnswerJudgement(Curation):
    """Each row becomes two: its right answer, to be called correct, and a wrong one, to be called incorrect.

    The paper judges solutions that the model sampled; here a wrong answer is one of the wrong choices, the rejected answer,
    or another row's answer.
    """

    summary = "rows that ask whether a right or a wrong answer is correct"
    paper = "Liu et al. 2023, arXiv 2310.10047"
    writes = True
    space = {"judgement_question": Text("\nIs the answer correct or incorrect? It is")}

    def skip(self, situation: Situation) -> str | None:
        """The task must have answers to judge."""
        return first_reason(without_answers(situation), unmet(situation))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """Two rows for each: one that calls its answer correct, one that calls a wrong answer incorrect."""
        question, wrong = setup.params.text("judgement_question"), wrong_answers(rows, random.Random(setup.seed))
        return [
            row.another(after(row.question, answer, row) + question, verdict)
            for row, mistake in zip(rows, wrong, strict=True)
            for answer, verdict in ((row.completion, " correct"), (mistake, " incorrect"))
        ]
