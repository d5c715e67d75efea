"""Evol-instruct: a model rewrites prompts to be harder or rarer, and answers them."""

from __future__ import annotations

import random
import re
from collections import Counter

from harness.axes.contract import Situation, StageSetup
from harness.curation._generation import Sampling, identity_of, writer
from harness.curation._novelty import Draft, Drafts, Novelty, remembered_rows
from harness.curation._refusals import first_reason, unmet, without_answers
from harness.curation.base import Curation
from harness.metrics._overlap import words
from harness.records.trial import derive_seed
from harness.space import Float, Integer, Text
from harness.tasks.training_rows import Row

OPERATIONS = (
    "has one more condition",
    "asks more deeply",
    "is about something more particular",
    "takes several steps of reasoning",
    "is about something rarer of the same kind",
)
"""In depth (four), and in breadth."""
LEAKED = ("given prompt", "rewritten prompt", "new prompt")
"""What a rewriter says of its own work; such prompts are dropped, as in the paper."""


class EvolInstruct(Curation):
    """A model rewrites a share of the prompts, `evolutions` times over, and answers them; those rows join the task's own.

    Each time one of five operations is drawn. A row is dropped where its prompt is empty, above `novelty_limit` ROUGE-L
    with a known one, or talks of the rewriting, or where its answer has no words or is a short apology. Answers are the
    model's own: how right they are is as good as the model is.
    """

    summary = "prompts that a model makes harder or rarer, and answers"
    paper = "Xu et al. 2023 (WizardLM), arXiv 2304.12244"
    writes = True
    space = {
        "generator": Text(names="models"),
        "evolved_share": Float(0.01, 1.0, default=0.5),
        "evolutions": Integer(1, 4, default=1, searched=False),
        "new_tokens": Integer(4, 2048, default=64, log=True, searched=False),
        "new_temperature": Float(0.1, 2.0, default=0.7, searched=False),
        "novelty_limit": Float(0.1, 1.0, default=0.9, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """The task must have prompts with answers, and the objective no need of more."""
        return first_reason(without_answers(situation), unmet(situation))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The task's rows, then the evolved ones.

        Raises:
            TrialFailure: When no evolved row was kept.
        """
        count = max(1, round(setup.params.number("evolved_share") * len(rows)))
        sample = random.Random(setup.seed).sample(rows, count)
        params = {name: setup.params[name] for name in self.space if name != "generator"}
        question = ["evol_instruct", setup.seed, params, [row.prompt for row in sample]]
        identity = identity_of("generator", setup)
        written = remembered_rows(identity, question, sample, setup, lambda: _evolved(sample, setup))
        return rows + written.report("evol-instruct", setup)


def _evolved(rows: list[Row], setup: StageSetup) -> Drafts:
    params, rng = setup.params, random.Random(derive_seed(setup.seed, "evol_instruct"))
    sampling = Sampling(params.integer("new_tokens"), params.number("new_temperature"), ("\n\n",)).of(rows[0])
    model, current = writer("generator", setup), list(rows)
    novelty = Novelty([row.question for row in rows], params.number("novelty_limit"))
    kept: list[Draft] = []
    dropped: Counter[str] = Counter()
    for turn in range(params.integer("evolutions")):
        asked = [
            model.request(f"{row.question}\n\nThe same, rewritten so that it {rng.choice(OPERATIONS)}:\n\n", row)
            for row in current
        ]
        written = model.texts(asked, sampling, derive_seed(setup.seed, "evolve", turn))
        evolved = [row.asking(text.strip("\n")) for row, text in zip(current, written, strict=True)]
        given = model.texts(list(map(model.prompt, evolved)), sampling, derive_seed(setup.seed, "answer", turn))
        for place, (row, answer) in enumerate(zip(evolved, given, strict=True)):
            if reason := _flaw(row.question, answer, novelty):
                dropped[reason] += 1
                continue  # the next turn rewrites the last prompt that was kept
            novelty.add(row.question)
            kept.append(Draft(place, row.question, answer.rstrip()))
            current[place] = row
    return Drafts(kept, dropped)


def _flaw(prompt: str, answer: str, novelty: Novelty) -> str | None:
    if not words(prompt):
        return "without a prompt"
    if any(leak in prompt.lower() for leak in LEAKED):
        return "about the rewriting"
    if not words(answer):
        return "without an answer"
    # As in the paper: a long answer may say "sorry" and still answer.
    if re.search(r"\bsorry\b", answer.lower()) and len(words(answer)) < 80:
        return "apologies"
    return "too similar" if novelty.nearest(prompt) > novelty.limit else None
