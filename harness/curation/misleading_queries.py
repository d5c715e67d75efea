"""Prompts with a false hint: to tell them, to correct them, or to answer them all the same."""

from __future__ import annotations

import random

from harness.axes.contract import Situation, StageSetup
from harness.curation._refusals import first_reason, unmet, without_answers
from harness.curation._wrong import after, wrong_answers
from harness.curation.base import Curation
from harness.space import Choice, Text
from harness.tasks.training_rows import Row


class MisleadingQueries(Curation):
    """Puts a wrong answer in front of each prompt as a hint; `misleading_step` says what is learned from that.

    identify: whether a prompt holds a false hint (each prompt with and without one); correct: the prompt without it;
    answer: the right answer, with and without a hint. The paper has them as three stages in a row, with misleading
    questions written by a large model; here the hint is one of the wrong choices, the rejected answer, or another row's.
    """

    summary = "prompts with a false hint, to be told, corrected or answered"
    paper = "Li et al. 2025, arXiv 2504.11277"
    writes = True
    space = {
        "misleading_step": Choice(("identify", "correct", "answer"), default="answer", searched=False),
        "misleading_hint": Text("Somebody says that the answer is"),
    }

    def skip(self, situation: Situation) -> str | None:
        """The task must have answers, of which a wrong one becomes the hint."""
        return first_reason(without_answers(situation), unmet(situation))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """Two rows of each, or one where the prompt is to be corrected."""
        step, hint = setup.params.text("misleading_step"), setup.params.text("misleading_hint")
        wrong = wrong_answers(rows, random.Random(setup.seed))
        queries: list[Row] = []
        for row, mistake in zip(rows, wrong, strict=True):
            misled = f"{after(hint, mistake, row)}.\n{row.question}"
            if step == "correct":
                queries.append(row.another(f"{misled}\nWithout the false hint:", f" {row.question}"))
            elif step == "identify":
                for question, verdict in ((row.question, " no"), (misled, " yes")):
                    queries.append(row.another(f"{question}\nIs there a false hint?", verdict))
            else:
                queries += [row, row.asking(misled)]
        return queries
