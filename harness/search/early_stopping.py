"""Whether what is left of a family's budget can still reach the best family, from its validation scores so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev

FIRST = 4
"""Trials that may start before any result is in, where families may give up: one more than `ENOUGH`."""
ENOUGH = 3
"""Scored trials that the rule needs: with two, the t distribution is too wide to ever decide anything."""


def chance(scores: Sequence[float], left: float, leader: float, stderr: float | None = None) -> float:
    """Upper bound of the chance that one of the trials that are left scores as high as the leader.

    Each trial to come exceeds the leader with probability P(T > (leader - mean) / (s sqrt(1 + 1/m))), T with m - 1
    degrees of freedom: the one-sided normal prediction limit of Hahn and Meeker, Statistical Intervals (1991), chapter
    4. Over n trials these chances add up at most (Bonferroni). Trials count as draws of one normal distribution; a
    sampler that learns makes later ones better, so a study should ask for small probabilities only.

    Args:
        scores: Of the family's trials at full fidelity; larger is better.
        left: Trials that its budget still pays for.
        leader: The score to reach.
        stderr: Standard error of one of the scores, which takes the place of a standard deviation of zero.

    Returns:
        A number in [0, 1]; 1 where there are fewer than three scores, or nothing is known of their spread.
    """
    count = len(scores)
    if count < ENOUGH or max(scores) >= leader:
        return 1.0
    spread = stdev(scores) or stderr or 0.0
    if spread == 0.0:
        return 1.0
    from scipy.special import stdtr

    distance = (leader - mean(scores)) / (spread * math.sqrt(1 + 1 / count))
    return min(1.0, left * float(stdtr(count - 1, -distance)))
