"""What a study could find, by simulating the very procedure that will judge it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.analysis.comparison import quantile
from harness.analysis.noise import Sample, errors_of, seed_noise
from harness.analysis.verdict import ALPHA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

INTERACTION = 0.01
"""Variance, over items, of the difference of what two families make of an item; an assumption, in squares of the scale."""
REST = 0.15
"""Variance of single answers that neither item nor run explains: likewise, of at most 0.25 where answers are right or wrong."""

STUDIES = 150
"""That are simulated."""
DRAWN = 3
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
    leads = []
    for samples in _studies(families, runs, items, seed_sd, min(tasks, DRAWN)):
        noise = seed_noise(samples)[0]
        if noise is None:
            return None
        errors, means = errors_of(samples[0], noise), samples[0].means
        # the lead that the first family would have needed in this study
        needed = [
            quantile(ALPHA / 2 / tasks, errors.pair_degrees[0, j]) * errors.pairs[0, j] ** 0.5 + means[j] - means[0]
            for j in range(1, families)
        ]
        leads.append(max(needed))
    return float(np.quantile(leads, power))


def _studies(families: int, runs: int, items: int | None, seed_sd: float, tasks: int) -> Iterator[list[Sample]]:
    """What equally good families show in each study; a table of item outcomes need not be drawn for that.

    All sizes of a study are made of the same chance, so that a larger one never looks worse by luck.
    """
    from scipy.special import gammaincinv

    n, rest = max(items or 1000, 2), (REST if items else 0.0)
    own = INTERACTION / 2 + rest / runs if items else 0.0
    degrees = runs - 1
    chance = _chance(families, tasks)
    means = chance.seeds * (seed_sd / runs**0.5) + chance.items * (own / n) ** 0.5
    variances = (seed_sd**2 + rest / n) * 2 * gammaincinv(degrees / 2, chance.variances) / degrees
    # Bartlett's decomposition of a Wishart matrix, which a covariance over items is; what all families share cancels
    left = np.maximum(n - 1.0 - np.arange(families), 1.0)
    root = np.tril(chance.covariances, -1)
    root[..., range(families), range(families)] = np.sqrt(2 * gammaincinv(left / 2, chance.diagonals))
    covariances = own / (n - 1) * root @ np.swapaxes(root, -1, -2) + 0.1
    names, count = tuple(map(str, range(families))), np.full(families, runs)
    for study in range(STUDIES):
        yield [
            Sample(
                names=names,
                means=means[study, task],
                covariance=covariances[study, task],
                runs=count,
                free=np.ones(families, dtype=bool),
                variances=variances[study, task],
                rest=np.full(families, rest),
                items=n,
                binary=False,
            )
            for task in range(tasks)
        ]


class _Chance(NamedTuple):
    """Normal and uniform numbers, shape (studies, tasks, families, ...)."""

    seeds: Numbers
    items: Numbers
    variances: Numbers
    diagonals: Numbers
    covariances: Numbers


@lru_cache(maxsize=8)
def _chance(families: int, tasks: int) -> _Chance:
    rng, shape = np.random.default_rng(0), (STUDIES, tasks, families)
    return _Chance(
        seeds=rng.normal(size=shape),
        items=rng.normal(size=shape),
        variances=rng.random(shape),
        diagonals=rng.random(shape),
        covariances=rng.normal(size=(*shape, families)),
    )


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is compared, as `detectable` takes it."""

    families: int
    seed_sd: float
    tasks: int = 1
    sampled: bool = True
    """Whether items are a sample of others."""

    def detectable(self, runs: int, items: int | None) -> float | None:
        """The lead that is found in 80 of 100 studies of this size."""
        own = items if self.sampled else None
        return detectable(families=self.families, runs=runs, items=own, seed_sd=self.seed_sd, tasks=self.tasks)

    def fewest_runs(self, lead: float, items: int | None) -> int | None:
        """Fewest runs of each family that find a lead, with so many items; None where `MOST_RUNS` do not.

        Args:
            lead: In units of the score.
            items: Of the test split.
        """
        own = items if self.sampled else None
        away = self._away(own or 1000)
        fits = (runs for runs in range(2, MOST_RUNS + 1) if away(runs) * self._error(runs, own) <= lead)
        runs = next(fits, MOST_RUNS)
        while runs <= MOST_RUNS and not self._finds(lead, runs, own):
            runs += 1
        while runs > 2 and self._finds(lead, runs - 1, own):
            runs -= 1
        return runs if runs <= MOST_RUNS else None

    def fewest_items(self, lead: float, runs: int, start: int) -> int | None:
        """Fewest test items that find a lead, to a few percent, with so many runs; None where no number does.

        Args:
            lead: In units of the score.
            runs: Of each family.
            start: Items to begin the search with.
        """
        items, enough = max(start, 2), None
        for _ in range(6):
            if (found := self.detectable(runs, items)) is None:
                return None
            if found <= lead:
                enough = items
            # squared, a lead is what seeds bring and what items bring, which falls as their number rises
            ratio = (found / self._error(runs, items)) ** 2
            left = lead**2 / ratio - 2 * self.seed_sd**2 / runs
            following = math.ceil(_by_item(runs) / left) if left > 0 else 4 * items
            if following > MOST_ITEMS:
                break
            if enough and abs(following - enough) <= 0.02 * enough:
                break
            items = max(following, 2) if following != items else math.ceil(1.02 * items)
        return enough

    def cheapest(
        self, lead: float, items: int, most: int, price: Callable[[int, int], float]
    ) -> tuple[int, int] | None:
        """The cheapest runs and items that find a lead, to a few percent; None where none with so many items do.

        Args:
            lead: In units of the score.
            items: Of the test split, as planned.
            most: Items that there are.
            price: Of a study of so many runs of each family and so many items.
        """
        away = self._away(items)
        sizes = []
        for runs in range(2, MOST_RUNS + 1):
            left = (lead / away(runs)) ** 2 - 2 * self.seed_sd**2 / runs
            if left > 0 and (needed := max(math.ceil(_by_item(runs) / left), 2)) <= most:
                sizes.append((price(runs, needed), runs, needed))
        for _, runs, needed in sorted(sizes)[:3]:
            own = self.fewest_items(lead, runs, needed)
            if own is not None and own <= most:
                return runs, own
        return None

    def _away(self, items: int) -> Callable[[int], float]:
        """How many errors away from 0 a lead must be, by the number of runs.

        It falls as runs say more of how seeds scatter, and hardly with the number of items.
        """
        grid = [2, 4, 10, MOST_RUNS]
        found = [self.detectable(runs, items) or math.inf for runs in grid]
        own = items if self.sampled else None
        errors = np.divide(found, [self._error(runs, own) for runs in grid])
        return lambda runs: float(np.interp(math.log(runs), np.log(grid), errors))

    def _error(self, runs: int, items: int | None) -> float:
        return math.sqrt(2 * self.seed_sd**2 / runs + (_by_item(runs) / items if items else 0.0))

    def _finds(self, lead: float, runs: int, items: int | None) -> bool:
        found = self.detectable(runs, items)
        return found is not None and found <= lead


MOST_RUNS = 64
"""Nobody runs more."""
MOST_ITEMS = 1_000_000


def _by_item(runs: int) -> float:
    """What one item brings to the squared error of a difference of two families."""
    return INTERACTION + 2 * REST / runs
