"""Rows that a model writes: which are worth training on, and why the others are dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass

from harness.axes.contract import StageSetup
from harness.curation._generation import remembered
from harness.errors import TrialFailure
from harness.metrics._overlap import rouge_l, words
from harness.tasks.training_rows import Row


class Novelty:
    """Prompts that exist already; a new one is too similar to them where its ROUGE-L with any is above `limit`."""

    def __init__(self, prompts: Iterable[str], limit: float) -> None:
        self.limit = limit
        self.known = [(own, Counter(own)) for own in map(words, prompts)]

    def nearest(self, prompt: str) -> float:
        """The highest ROUGE-L of `prompt` with a known prompt; 0 where none can be above the limit."""
        own = words(prompt)
        counted = Counter(own)
        highest = 0.0
        for other, others in self.known:
            # ROUGE-L takes quadratic time. A common subsequence has at most the words that both prompts have, so most
            # pairs are ruled out by counting words.
            if 2 * (counted & others).total() > self.limit * (len(own) + len(other)):
                highest = max(highest, rouge_l(own, other))
        return highest

    def add(self, prompt: str) -> None:
        """Count a prompt among the known ones."""
        own = words(prompt)
        self.known.append((own, Counter(own)))


@dataclass(frozen=True)
class Draft:
    """What a model wrote for a row."""

    like: int
    """The place of the row whose form it has."""
    question: str
    answer: str


@dataclass(frozen=True)
class Drafts:
    """Drafts that were kept, and how many were dropped for which reason."""

    kept: list[Draft]
    dropped: Counter[str]


@dataclass(frozen=True)
class Written:
    """Rows that a model wrote and that were kept, and how many were dropped for which reason."""

    rows: list[Row]
    dropped: Counter[str]

    def report(self, curation: str, setup: StageSetup) -> list[Row]:
        """Note what became of the rows, and return those that were kept.

        Args:
            curation: Its name, as notes and errors call it.
            setup: The stage's.

        Raises:
            TrialFailure: When none was kept: the trial would be that of another pipeline, the one without curation.
        """
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        counts = f"{curation}: {len(self.rows) + self.dropped.total()} rows were generated, {len(self.rows)} kept"
        setup.note(counts + (f"; dropped were {reasons}" if reasons else ""))
        if not self.rows:
            raise TrialFailure(
                f"{curation} must keep at least one generated row, but dropped all ({reasons}): name a stronger model"
            )
        return self.rows


def remembered_rows(
    identity: str, question: Sequence[object], rows: Sequence[Row], setup: StageSetup, write: Callable[[], Drafts]
) -> Written:
    """Rows that a model writes, kept on disk like `remembered` keeps texts.

    Args:
        identity: Of the model that writes, see `identity_of`.
        question: All else that the rows depend on, as JSON.
        rows: Those that drafts are like.
        setup: The stage's.
        write: Writes drafts of them.
    """

    def as_json() -> object:
        drafts = write()
        return {"kept": list(map(astuple, drafts.kept)), "dropped": dict(drafts.dropped)}

    data = remembered(identity, [*question, "drafts"], setup, as_json)
    drafts = [Draft(*draft) for draft in data["kept"]]
    made = [rows[draft.like].another(draft.question, draft.answer) for draft in drafts]
    return Written(made, Counter(data["dropped"]))
