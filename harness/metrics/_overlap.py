"""How much two texts have in common, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """F-measure of the longest common subsequence of two lists of words, in [0, 1]; 0 where one is empty.

    Lin 2004 (https://aclanthology.org/W04-1013) with equal weight of precision and recall, without stemming.

    Args:
        first: Words of a text.
        second: Words of the other; the order of the two does not matter.
    """
    if not first or not second:
        return 0.0
    # One row of the table of prefix lengths is enough: a cell needs its left, upper and upper-left neighbours.
    row = [0] * (len(second) + 1)
    for word in first:
        upper_left = 0
        for place, other in enumerate(second, 1):
            upper = row[place]
            row[place] = upper_left + 1 if word == other else max(upper, row[place - 1])
            upper_left = upper
    return 2 * row[-1] / (len(first) + len(second))
