"""A filter that chooses among an item's samples: clusters of the same final answer, re-ranked by their solutions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from harness.metrics._overlap import rouge_l, words


def chosen(texts: Sequence[str], pattern: str, clusters: int) -> str:
    """The solution that stands for the best cluster.

    Solutions are grouped by the last match of `pattern` in them (its first group where it has one). Of the `clusters`
    largest groups, each solution is scored by its mean overlap with all other solutions; the group with the highest sum
    wins, and its best solution is chosen. Solutions without a match are a group only if there is no other.

    Liu et al. 2023 (arXiv 2310.10047) score solutions with a model that was trained to judge them; a filter sees texts
    only, so agreement stands in for it here.

    Args:
        texts: The samples of one item.
        pattern: Regular expression of a final answer.
        clusters: How many of the largest groups compete.

    Returns:
        One of the texts.
    """
    matches = [re.findall(pattern, text) for text in texts]
    answers = [_first(own[-1]).strip() if own else None for own in matches]
    answered = [place for place, answer in enumerate(answers) if answer is not None]
    places = answered or list(range(len(texts)))
    groups: dict[str | None, list[int]] = {}
    for place in places:
        groups.setdefault(answers[place], []).append(place)
    # Ties go to the earlier sample throughout, so that the same samples always give the same answer.
    largest = sorted(groups.values(), key=lambda group: (-len(group), group[0]))[:clusters]
    solutions = [words(text) for text in texts]
    scores = {
        place: sum(rouge_l(solutions[place], solutions[other]) for other in places if other != place)
        for group in largest
        for place in group
    }
    best = max(largest, key=lambda group: (sum(scores[place] for place in group), -group[0]))
    return texts[max(best, key=lambda place: (scores[place], -place))]


def _first(match: str | tuple[str, ...]) -> str:
    # re.findall gives tuples where the pattern has several groups
    return str(match[0] if isinstance(match, tuple) else match)


@cache
def cluster_filter() -> type[object]:
    """lm-eval's filter `cluster_vote`, with `pattern` and `clusters` (5); what it chooses is the only response left."""
    from lm_eval.api.filter import Filter

    class ClusterVote(Filter):  # type: ignore[misc]
        def __init__(self, pattern: str = r"-?\d+(?:\.\d+)?", clusters: int = 5) -> None:
            self.pattern, self.clusters = pattern, clusters

        def apply(self, resps: Iterable[Sequence[str]], docs: object) -> list[list[str]]:
            return [[chosen(list(texts), self.pattern, self.clusters)] for texts in resps]

    return ClusterVote
