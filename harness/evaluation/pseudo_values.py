"""What each item brings to a metric of all items at once: F1, correlations, corpus BLEU, perplexity of a corpus.

The jackknife leaves items out and sees what becomes of the score (Tukey 1958, Annals of Mathematical Statistics 29:614; by
blocks of unequal size, Busing, Meijer and van der Leeden 1999, Statistics and Computing 9:3-8). What comes of it is spread
over the items so that they can be treated as if the score were their mean: the mean of these values is the score, and their
variance over n is its squared error over fresh items. Two models' values on the same items differ by what their scores do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import SupportsFloat

import numpy as np

BLOCKS = 50
"""Blocks of items that are left out in turn, at most: aggregating a corpus takes long."""


def pseudo_values(
    aggregate: Callable[[Sequence[object]], SupportsFloat], parts: Sequence[object], score: float
) -> list[float] | None:
    """A value for each item, whose mean is the score.

    Args:
        aggregate: Makes the score of what items have.
        parts: What each item has.
        score: Of all of them.

    Returns:
        None where the metric cannot be computed without some of the items.
    """
    count = len(parts)
    blocks = min(count, BLOCKS)
    if blocks < 2:
        return None
    block = np.arange(count) % blocks
    try:
        left = [
            float(aggregate([part for part, its in zip(parts, block, strict=True) if its != own]))
            for own in range(blocks)
        ]
    except (ArithmeticError, ValueError, LookupError):  # of one class, for example, there is no area under a curve
        return None
    if not all(map(math.isfinite, left)):
        return None
    sizes = np.bincount(block)
    times = count / sizes
    own = times * score - (times - 1) * np.array(left)
    # As many items say the same as a block has, so that each says it with the root of that number.
    spread = (np.sqrt(sizes) * (own - np.average(own, weights=sizes)))[block]
    return [float(value) for value in score + spread - spread.mean()]
