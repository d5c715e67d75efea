"""How far answers to differently worded questions agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from harness.errors import SpecError, one_of
from harness.metrics._overlap import rouge_l, words
from harness.metrics.base import SHARE, Answered, Measure, Settings

COMPARISONS = ("equal", "overlap")


class Consistency(Measure):
    """Mean agreement of pairs of answers within a group of items, over groups; whether they are right does not count.

    `group` names the column that wordings of the same question share. `compare` is equal (same words, for short answers
    and choices) or overlap (ROUGE-L, for explanations). Items that are alone in their group do not count.
    """

    summary = "agreement of answers to differently worded questions"
    paper = "after Chen et al. 2024, arXiv 2401.13986"
    output_types = ("multiple_choice", "generate_until")
    scale = SHARE
    settings = {"group": "", "compare": "equal"}

    def check(self, settings: Settings, where: str) -> None:
        """Ask for a named column and a known comparison.

        Args:
            settings: Of the entry, with defaults filled in.
            where: Task file and metric, for the error message.

        Raises:
            SpecError: When they are not what was asked for.
        """
        super().check(settings, where)
        if not settings["group"]:
            raise SpecError(f"{where} must have a group, but has none: name the column that wordings share")
        if settings["compare"] not in COMPARISONS:
            raise SpecError(f"{where}: " + one_of("compare", str(settings["compare"]), list(COMPARISONS)))

    def item(self, answered: Answered) -> tuple[str, str, str]:
        """Group, comparison and answer."""
        column = str(answered.settings["group"])
        if column not in answered.doc:
            raise SpecError("consistency: " + one_of("column in group", column, [str(name) for name in answered.doc]))
        text = str(answered.answers[0])
        if answered.choices:
            text = answered.choices[max(range(len(answered.answers)), key=answered.answers.__getitem__)]
        return str(answered.doc[column]), str(answered.settings["compare"]), text

    def total(self, items: Sequence[tuple[str, str, str]]) -> float:
        """In [0, 1].

        Raises:
            SpecError: When no group has two items.
        """
        groups: dict[str, list[list[str]]] = {}
        for group, _, text in items:
            groups.setdefault(group, []).append(words(text))
        # All items of a metric's entry have the same settings.
        agree = rouge_l if items[0][1] == "overlap" else _same
        means = []
        for answers in groups.values():
            pairs = [agree(first, second) for first, second in combinations(answers, 2)]
            if pairs:
                means.append(sum(pairs) / len(pairs))
        if not means:
            raise SpecError(
                "consistency needs a group with two items, but no group has: raise the limit, or correct group"
            )
        return sum(means) / len(means)


def _same(first: Sequence[str], second: Sequence[str]) -> float:
    return float(list(first) == list(second))
