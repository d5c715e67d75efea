"""Self-instruct: a model writes new rows after examples of the task's."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from harness.axes.contract import Situation, StageSetup
from harness.curation._generation import Sampling, identity_of, writer
from harness.curation._novelty import Draft, Drafts, Novelty, remembered_rows
from harness.curation._refusals import first_reason, unmet, without_answers
from harness.curation.base import Curation
from harness.records.trial import derive_seed
from harness.space import Float, Integer, Text
from harness.tasks.training_rows import Row

SEEDS = 512
"""Rows that examples are drawn from, and new prompts compared with, at most."""
ASK, ANSWER = "### Prompt:\n", "\n### Answer:\n"
SHOWN, OWN = 6, 2
"""Rows of the task, and earlier rows of its own, that the writer is shown."""
ROUND = 32
"""Lists that are continued at once; the next ones show what these have given."""
LABELS = 20
"""A task of choices with at most so many different answers has no others."""


class SelfInstruct(Curation):
    """A model continues lists of the task's rows with new ones, which join the task's own.

    Each list shows six rows of the task and two generated before. A row is dropped where no prompt and answer can be
    read, where its prompt is above `novelty_limit` ROUGE-L with a known one, or where a task of choices has no such
    answer. Writing ends at `new_rows` kept rows, or after four times as many were written.
    """

    summary = "new rows that a model writes after examples of the task's"
    paper = "Wang et al. 2022, arXiv 2212.10560"
    writes = True
    space = {
        "generator": Text(names="models"),
        "new_rows": Integer(1, 100_000, default=128, log=True),
        "new_tokens": Integer(4, 2048, default=64, log=True, searched=False),
        "new_temperature": Float(0.1, 2.0, default=0.7, searched=False),
        "novelty_limit": Float(0.1, 1.0, default=0.7, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """The task must have prompts with answers, and the objective no need of more."""
        return first_reason(without_answers(situation), unmet(situation))

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The task's rows, then the new ones.

        Raises:
            TrialFailure: When no new row was kept.
        """
        seeds = [row.alone() for row in random.Random(setup.seed).sample(rows, min(SEEDS, len(rows)))]
        params = {name: setup.params[name] for name in self.space if name != "generator"}
        question = ["self_instruct", setup.seed, params, [[row.prompt, row.completion] for row in seeds]]
        identity = identity_of("generator", setup)
        written = remembered_rows(identity, question, seeds, setup, lambda: _written(seeds, setup))
        return rows + written.report("self-instruct", setup)


def _written(seeds: list[Row], setup: StageSetup) -> Drafts:
    params, rng = setup.params, random.Random(derive_seed(setup.seed, "self_instruct"))
    wanted = params.integer("new_rows")
    model = writer("generator", setup)
    sampling = Sampling(params.integer("new_tokens"), params.number("new_temperature"))
    sampling = replace(sampling, stop=(ASK.strip(), *sampling.of(seeds[0]).stop))
    novelty = Novelty([row.question for row in seeds], params.number("novelty_limit"))
    answers = {row.completion for row in seeds}
    # Where a task's answers are labels, a new label is a mistake of the writer.
    labels = answers if len(answers) <= LABELS and all(row.wrong is not None for row in seeds) else None
    kept: list[Draft] = []
    dropped: Counter[str] = Counter()
    # A model that cannot write such rows must not write for ever.
    for start in range(0, 4 * wanted, ROUND):
        size = min(ROUND, 4 * wanted - start)
        lists = [model.request(_list(seeds, kept, rng), seeds[0], ASK) for _ in range(size)]
        for text in model.texts(lists, sampling, derive_seed(setup.seed, "write", start)):
            if len(kept) == wanted:
                break
            draft = _read(text, seeds[0])
            if reason := _flaw(draft, novelty, labels):
                dropped[reason] += 1
                continue
            assert draft is not None
            novelty.add(draft.question)
            kept.append(draft)
        if len(kept) == wanted:
            break
    return Drafts(kept, dropped)


def _list(seeds: list[Row], kept: list[Draft], rng: random.Random) -> str:
    shown = [(row.question, row.completion) for row in rng.sample(seeds, min(SHOWN, len(seeds)))]
    shown += [(draft.question, draft.answer) for draft in rng.sample(kept, min(OWN, len(kept)))]
    rng.shuffle(shown)
    return "".join(f"{ASK}{question}{ANSWER}{answer}\n\n" for question, answer in shown)


def _read(text: str, like: Row) -> Draft | None:
    """What was written, its answer with the white space that the task's answers begin with."""
    question, mark, answer = text.partition(ANSWER)
    if not mark or not question.strip() or not answer.strip():
        return None
    space = like.completion[: len(like.completion) - len(like.completion.lstrip())]
    return Draft(0, question, space + answer.strip())


def _flaw(draft: Draft | None, novelty: Novelty, labels: set[str] | None) -> str | None:
    if draft is None:
        return "unreadable"
    if labels is not None and draft.answer not in labels:
        return "without one of the task's answers"
    return "too similar" if novelty.nearest(draft.question) > novelty.limit else None
