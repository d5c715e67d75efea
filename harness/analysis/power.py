"""What a study could find, by simulating the very procedure that will judge it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from harness.analysis.comparison import quantile
from harness.analysis.noise import Sample, errors_of, seed_noise
from harness.analysis.verdict import ALPHA

INTERACTION = 0.01
"""Variance, over items, of the difference of what two families make of an item; an assumption, in squares of the scale."""
REST = 0.15
"""Variance of single answers that neither item nor run explains: likewise, of at most 0.25 where answers are right or wrong."""

STUDIES = 150
"""That are simulated."""
DRAWN = 6
"""Tasks that a simulated study has at most: more say hardly more of how seeds scatter. All share the correction."""


@lru_cache(maxsize=256)  # a plan asks the same of every task that looks alike
def detectable(
    *,
    families: int,
    runs: int,
    items: int | None,
    seed_sd: float,
    tasks: int = 1,
    power: float = 0.8,
) -> float | None:
    """Smallest lead of one family over equally good others for which `verdict.judge` says "use it" so often.

    Args:
        families: That are compared, at least two.
        runs: Of each.
        items: Of the test split; None where items are no sample of any.
        seed_sd: Standard deviation of a run's mean over seeds, in units of the score, with any number of items.
        tasks: Of the study, which share one correction.
        power: How often, in (0, 1).

    Returns:
        In units of the score; None with fewer than two runs.
    """
    if runs < 2:
        return None
    rng = np.random.default_rng(0)
    leads = []
    for _ in range(STUDIES):
        samples = [_drawn(rng, families, runs, items, seed_sd) for _ in range(min(tasks, DRAWN))]
        noise = seed_noise(samples)[0]
        if noise is None:
            return None
        errors = errors_of(samples[0], noise)
        means = samples[0].means
        # the lead that the first family would have needed in this study
        needed = [
            quantile(ALPHA / 2 / tasks, errors.pair_degrees[0, j]) * errors.pairs[0, j] ** 0.5 + means[j] - means[0]
            for j in range(1, families)
        ]
        leads.append(max(needed))
    return float(np.quantile(leads, power))


def _drawn(rng: np.random.Generator, families: int, runs: int, items: int | None, seed_sd: float) -> Sample:
    """What equally good families show; a table of item outcomes need not be drawn for that."""
    n, rest = (items or 1000), (REST if items else 0.0)
    own = INTERACTION / 2 + rest / runs if items else 0.0
    means = rng.normal(0, seed_sd / runs**0.5, families) + rng.normal(0, (own / n) ** 0.5, families)
    degrees = runs - 1
    # Wishart with n - 1 degrees of freedom is the covariance over items; what all families share cancels
    shown = rng.normal(0, own**0.5, (families, max(n, 2)))
    return Sample(
        names=tuple(map(str, range(families))),
        means=means,
        covariance=np.atleast_2d(np.cov(shown)) + 0.1,
        runs=np.full(families, runs),
        free=np.ones(families, dtype=bool),
        variances=(seed_sd**2 + rest / n) * rng.chisquare(degrees, families) / degrees,
        rest=np.full(families, rest),
        items=max(n, 2),
        binary=False,
    )
