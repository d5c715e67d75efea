"""Which generated rows are worth training on, and why the others are dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from harness.axes.contract import StageSetup
from harness.errors import TrialFailure
from harness.metrics._overlap import rouge_l, words
from harness.tasks.training_rows import Row


class Novelty:
    """Prompts that are there already; a new one is too similar above a ROUGE-L of `limit` to any."""

    def __init__(self, prompts: Iterable[str], limit: float) -> None:
        self.limit = limit
        self.known = [(own, Counter(own)) for own in map(words, prompts)]

    def nearest(self, prompt: str) -> float:
        """Highest ROUGE-L with a known prompt, as far as it matters: 0 where none can be above the limit."""
        own = words(prompt)
        counted = Counter(own)
        found = 0.0
        for other, others in self.known:
            # a common subsequence has at most the words that both have
            if 2 * (counted & others).total() > self.limit * (len(own) + len(other)):
                found = max(found, rouge_l(own, other))
        return found

    def add(self, prompt: str) -> None:
        """Count a prompt among the known ones."""
        own = words(prompt)
        self.known.append((own, Counter(own)))


def report(kind: str, kept: list[Row], dropped: Counter[str], setup: StageSetup) -> None:
    """Note what became of the generated rows.

    Raises:
        TrialFailure: When none was kept, so that the trial would be one without them.
    """
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    told = f"{kind}: {len(kept) + dropped.total()} rows were generated, {len(kept)} kept"
    setup.note(told + (f"; dropped were {reasons}" if reasons else ""))
    if not kept:
        raise TrialFailure(
            f"{kind} must keep at least one generated row, but dropped all ({reasons}): name a stronger model"
        )
