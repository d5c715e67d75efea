"""Consistency data: reworded prompts that get the answer of the original."""

from __future__ import annotations

from collections import Counter

from harness.axes.contract import Situation, StageSetup
from harness.curation._generation import Sampling, identity_of, remembered, writer
from harness.curation._novelty import Written
from harness.curation._refusals import first_reason, without_answers
from harness.curation.base import Curation
from harness.metrics._overlap import rouge_l, words
from harness.records.trial import derive_seed
from harness.space import Float, Integer, Text
from harness.tasks.training_rows import Row


class ExplanationConsistency(Curation):
    """A model rewords each prompt `rewordings` times; the rows join the task's own, with the same answers.

    A rewording is dropped where it is empty, the same words again, or below `shared_words` ROUGE-L with its original,
    which is then another question. The paper has a large model write related questions and explanations that agree
    with the first one's; here the only agreement is that of answers, and what is reworded is as good as the model is.
    """

    summary = "reworded prompts with the answer of the original"
    paper = "after Chen et al. 2024 (EC-finetuning), arXiv 2401.13986"
    writes = True
    space = {
        "generator": Text(names="models"),
        "rewordings": Integer(1, 4, default=1),
        "shared_words": Float(0.0, 0.9, default=0.3, searched=False),
        "new_tokens": Integer(4, 2048, default=64, log=True, searched=False),
        "new_temperature": Float(0.1, 2.0, default=0.7, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """The task must have prompts to reword."""
        return first_reason(without_answers(situation))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The task's rows, then the reworded ones, which keep all other columns.

        Raises:
            TrialFailure: When no rewording was kept.
        """
        params = {name: setup.params[name] for name in self.space if name != "generator"}
        question = ["explanation_consistency", setup.seed, params, [row.prompt for row in rows]]
        question += ["in turns"] if rows[0].turns else []
        written = remembered(identity_of("generator", setup), question, setup, lambda: _reworded(rows, setup))
        kept: list[Row] = []
        dropped: Counter[str] = Counter()
        for texts in written:
            for row, text in zip(rows, texts, strict=True):
                if reason := _flaw(row.question, text, setup.params.number("shared_words")):
                    dropped[reason] += 1
                else:
                    kept.append(row.asking(text))
        return rows + Written(kept, dropped).report("explanation consistency", setup)


def _reworded(rows: list[Row], setup: StageSetup) -> list[list[str]]:
    params = setup.params
    sampling = Sampling(params.integer("new_tokens"), params.number("new_temperature"), ("\n\n",)).of(rows[0])
    model = writer("generator", setup)
    asked = [model.request(f"{row.question}\n\nThe same in other words:\n\n", row) for row in rows]
    seeds = [derive_seed(setup.seed, "reword", turn) for turn in range(params.integer("rewordings"))]
    return [[text.strip("\n") for text in model.texts(asked, sampling, seed)] for seed in seeds]


def _flaw(prompt: str, text: str, shared: float) -> str | None:
    own, others = words(prompt), words(text)
    if not others:
        return "empty"
    if own == others:
        return "the same again"
    return "about something else" if rouge_l(own, others) < shared else None
