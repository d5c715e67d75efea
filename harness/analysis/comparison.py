"""A question about one task, and the families of it with their errors: tests and intervals of single pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.noise import Errors, Sample
from harness.analysis.statistics import Interval
from harness.records.scale import Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

ALIKE = "they gave the same answer to every item"
CONSTANT = "neither runs nor items vary"


@dataclass(frozen=True, eq=False, kw_only=True)
class Question:
    """Which of these families is best on one task?"""

    scores: Mapping[str, Numbers]
    """By family, shape (runs, items); more is better, the items are the same in all of them."""
    base: str | None = None
    """The family that is the base model as it is, with one run."""
    fixed: frozenset[str] = frozenset()
    """Further families that are one finished model each, with one run."""
    scale: Scale = field(default_factory=Scale)
    """Between which values scores lie; of a metric of which less is better, turned round as its scores are."""
    smallest: float | None = None
    """Smallest difference that matters, in units of the score; None where nobody said."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Table:
    """A question with the errors of its families."""

    question: Question
    sample: Sample
    errors: Errors

    @cached_property
    def order(self) -> list[int]:
        """Families, worst first; among equals the base counts as best, since it costs nothing."""
        is_base = np.array([name == self.question.base for name in self.sample.names])
        return [int(index) for index in np.lexsort((is_base, self.sample.means.round(12)))]

    @property
    def top(self) -> int:
        """The leader's place."""
        return self.order[-1]

    @property
    def leader(self) -> str:
        """The leader's name."""
        return self.sample.names[self.top]

    @property
    def base(self) -> int | None:
        """The base's place."""
        return self.sample.names.index(self.question.base) if self.question.base in self.sample.names else None

    @property
    def candidates(self) -> int:
        """Out of how many the leader was picked."""
        return max(int(self.sample.free.sum()), 1)

    def lead(self, i: int, j: int) -> float:
        """Difference of two families' means."""
        return float(self.sample.means[i] - self.sample.means[j])

    def error(self, i: int, j: int) -> float:
        """Standard error of that difference; 0 where it is that of rounding."""
        error = float(self.errors.pairs[i, j] ** 0.5)
        return error if error > 1e-9 * float(np.abs(self.sample.means).max()) else 0.0

    def p(self, i: int, j: int) -> float:
        """Two-sided t test of that difference; 1 where there is no error to judge it by."""
        error = self.error(i, j)
        return 2 * tail(abs(self.lead(i, j)) / error, self.errors.pair_degrees[i, j]) if error > 0 else 1.0

    def p_range(self, i: int, j: int, spanned: int, limit: float) -> float:
        """That of the studentized range.

        Args:
            i: Place of one family.
            j: Place of the other.
            spanned: How many means the range is of.
            limit: The p of the t test, which is smaller, is given where it is above this: the range takes long.
        """
        from scipy.stats import studentized_range

        p = self.p(i, j)
        if p > limit:
            return p
        ratio = abs(self.lead(i, j)) / self.error(i, j) * 2**0.5
        return max(p, float(studentized_range.sf(ratio, spanned, self.errors.pair_degrees[i, j])))

    def p_use(self) -> float:
        """That the leader is not better than every other family."""
        return max((self.p(self.top, other) for other in self.order[:-1]), default=1.0)

    def p_equivalent(self, i: int, j: int) -> float:
        """That two families differ by the smallest difference that matters, or by more."""
        error, smallest = self.error(i, j), self.question.smallest
        if smallest is None or error <= 0:
            return 1.0
        return tail((smallest - abs(self.lead(i, j))) / error, self.errors.pair_degrees[i, j])

    def difference(self, i: int, j: int, picked: int = 1) -> Interval:
        """The difference of two families' means.

        Args:
            i: Place of the first.
            j: Place of the second, which is subtracted.
            picked: Out of how many the first was picked, which the lower end allows for.
        """
        lead, error, degrees = self.lead(i, j), self.error(i, j), self.errors.pair_degrees[i, j]
        runs = int(self.sample.runs[i])
        if error <= 0:
            return Interval(mean=lead, low=None, high=None, n=runs)
        width = self.question.scale.width or np.inf
        low = max(lead - quantile(0.025 / picked, degrees) * error, -width)
        return Interval(mean=lead, low=low, high=min(lead + quantile(0.025, degrees) * error, width), n=runs)

    def gain(self, i: int) -> Interval:
        """A family's difference to the base, of which there must be one."""
        return self.difference(i, self.base or 0, self.candidates if i == self.top else 1)

    def level(self, i: int) -> Interval:
        """A family's mean score."""
        degrees, picked = self.errors.level_degrees[i], self.candidates if i == self.top else 1
        low, high = -quantile(0.025 / picked, degrees), quantile(0.025, degrees)
        mean, runs = float(self.sample.means[i]), int(self.sample.runs[i])
        return Interval(mean=mean, low=self._bound(i, low), high=self._bound(i, high), n=runs)

    def _bound(self, i: int, t: float) -> float:
        """An end of a level's interval, at so many errors from the mean."""
        mean, square, scale = float(self.sample.means[i]), float(self.errors.levels[i]), self.question.scale
        if scale.low is None or not scale.width:
            ends = (-np.inf if scale.low is None else scale.low, np.inf if scale.high is None else scale.high)
            return float(np.clip(mean + t * square**0.5, *ends))
        share, square = (mean - scale.low) / scale.width, square / scale.width**2
        # as many items as give this error; where all answers are alike, as many as there are
        n = max(share * (1 - share) / square, 1.0) if 0 < share < 1 and square > 0 else float(self.sample.items)
        root = (share * (1 - share) / n + t**2 / (4 * n * n)) ** 0.5
        bound = (share + t**2 / (2 * n) + t * root) / (1 + t**2 / n)
        return float(scale.low + scale.width * np.clip(bound, 0.0, 1.0))

    def unvaried(self, i: int, j: int) -> str:
        """Why two families cannot be compared; empty where they can."""
        alike = abs(self.lead(i, j)) < 1e-12
        if self.error(i, j) <= 0:
            return ALIKE if alike else CONSTANT
        covariance = self.sample.covariance[np.ix_([i, j], [i, j])]
        return ALIKE if alike and np.ptp(covariance) < 1e-12 else ""


def tail(ratio: float, degrees: float) -> float:
    """Probability that Student's t exceeds a ratio."""
    from scipy.special import stdtr

    return float(stdtr(degrees, -ratio))


def quantile(beyond: float, degrees: float) -> float:
    """What Student's t exceeds with this probability."""
    from scipy.special import stdtrit

    return float(-stdtrit(degrees, beyond))
