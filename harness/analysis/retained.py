"""What became of each skill that a model had: lost, kept, or why that cannot be said.

A skill's own metric is judged first. Where it has no headroom, because the base stands at chance or at the floor of the scale,
what judges instead is how unlikely the right answers have become: an accuracy that cannot fall hides no loss that rose.

Loss is the base's score less the tuned model's, as a share of the scale or in nats (`analysis.forgetting`). Its squared error
over fresh seeds and fresh items is v/S + w/I, with v the variance of the S runs' losses and w that of the I items' losses, each
the mean of the runs on that item; t with the degrees of freedom of Satterthwaite 1946 (Biometrics Bulletin 2:110-114). To the
items come two pseudo-items, in which one run loses and gains the whole scale (or a nat), so that no change in few items is no
certainty: where one item in fifty loses everything, 30 items hold no such item with probability .55. Losses are skewed where few
items have most of them; t is freed of that by a cubic transformation (Hall 1992, JRSS B 54:221-228).
`lost` is a two-sided test of no loss, corrected over all skills that are asked about together (Holm 1979); `kept` is the
one-sided test against a loss of the smallest difference that matters (Schuirmann 1987, J. Pharmacokin. Biopharm. 15:657-680).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from harness.analysis.forgetting import NO_HEADROOM, probability_lost
from harness.analysis.statistics import holm

ANSWERS = "answer_bits_per_byte"
"""The measure of a skill whose own metric has no headroom: how unlikely the right answers are."""
ALPHA = 0.05
_FOUND = 1.96 + 0.84
"""Errors that a difference must be away for a test at `ALPHA` to find it in 80 of 100 studies."""


class Status(StrEnum):
    """What became of a skill."""

    LOST = "lost"
    KEPT = "kept"
    TOO_FEW = "too few items"
    NO_HEADROOM = "no headroom"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far a mean loss would be elsewhere, over fresh seeds and fresh items, in the unit of the loss."""

    seeds: float
    """Squared error that seeds bring; 0 for a single model, which is asked about itself."""
    items: float
    """Squared error that items bring."""
    df: float
    runs: int
    count: int
    """Items."""
    third: float = 0.0
    """Third central moment that items bring to the mean loss."""

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.seeds + self.items)

    @property
    def skewness(self) -> float:
        """Of the mean loss."""
        return self.third / self.error**3 if self.error > 0 else 0.0

    def tail(self, loss: float) -> float:
        """Probability of such a mean loss, or one further from 0 on its side, where nothing was lost."""
        from scipy.stats import t

        ratio, skewness = loss / max(self.error, 1e-300), self.skewness
        freed = ratio + skewness * ratio**2 / 3 + skewness**2 * ratio**3 / 27 + skewness / 6
        return float(t.sf(abs(freed), self.df))

    def bound(self, loss: float, beyond: float) -> float:
        """The loss than which a smaller one is true with so little probability; one above 1/2 gives an upper bound.

        Args:
            loss: Mean, as measured.
            beyond: The probability.
        """
        from scipy.stats import t

        ratio, skewness = float(t.isf(beyond, self.df)), self.skewness
        if abs(skewness) > 1e-6:
            ratio = 3 / skewness * (math.cbrt(1 + skewness * (ratio - skewness / 6)) - 1)
        return loss - ratio * self.error


def noise_of(runs: Sequence[float], items: NDArray[np.float64]) -> Noise | None:
    """The noise of a mean loss.

    Args:
        runs: Loss of each run, over all items.
        items: Loss on each item, mean over runs, shape (items,).

    Returns:
        None for fewer than two items, of which nothing is known.
    """
    count, own = len(items), len(runs)
    if count < 2:
        return None
    variance = (float(np.var(items, ddof=1)) * (count - 1) + 2 / own**2) / (count + 1)
    spread = float(np.var(runs, ddof=1)) / own if own > 1 else 0.0
    third = float(((items - items.mean()) ** 3).mean()) / count**2
    return replace(combined(spread, variance / count, own, count), third=third)


def combined(seeds: float, items: float, runs: int, count: int) -> Noise:
    """Noise from its two squared errors, with Satterthwaite's degrees of freedom.

    Args:
        seeds: Squared error of the mean over runs.
        items: Squared error of the mean over items.
        runs: How many.
        count: Items.
    """
    scatter = (seeds**2 / (runs - 1) if runs > 1 else 0.0) + items**2 / (count - 1)
    df = max((seeds + items) ** 2 / scatter, 1.0) if scatter > 0 else count - 1.0
    return Noise(seeds=seeds, items=items, df=df, runs=runs, count=count)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How much of a skill was lost by one measure."""

    name: str
    loss: float
    """Mean over runs; a share of the scale, or nats."""
    noise: Noise | None
    headroom: float | None
    """What could be lost: from the base's score down to chance, or to the floor of the scale; None where nobody declared it."""
    in_nats: bool = False
    gap: str = "no outcomes of single items were kept"
    """Why there is no noise, as half a sentence."""

    def can_show(self, smallest: float) -> bool:
        """Whether it can fall far enough to show a loss that matters, as far as is known."""
        return self.headroom is None or self.headroom >= self.margin(max(smallest, NO_HEADROOM))

    def margin(self, smallest: float) -> float:
        """A share that matters, in the unit of the loss."""
        return -math.log1p(-smallest) if self.in_nats else smallest

    def share(self, loss: float) -> float:
        """A loss as a share: of the scale, or of a token's probability."""
        return probability_lost(loss) if self.in_nats else loss

    @property
    def p(self) -> float | None:
        """Two-sided, of no loss; None where there is no noise to judge by."""
        if self.noise is None or (self.noise.error == 0 and self.loss == 0):
            return None
        return min(2 * self.noise.tail(self.loss), 1.0)

    def bounds(self, coverage: float) -> tuple[float, float] | None:
        """The loss's interval, in its unit."""
        if self.noise is None:
            return None
        beyond = (1 - coverage) / 2
        return self.noise.bound(self.loss, beyond), self.noise.bound(self.loss, 1 - beyond)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of a skill, and by which measure that is said."""

    status: Status
    measure: Measure
    reason: str
    """Half a sentence."""
    low: float | None = None
    """Ends of the 95% interval of the loss, as a share."""
    high: float | None = None
    p: float | None = None
    """Of no loss, corrected over all skills that were asked about together."""
    items_needed: int | None = None
    """How many would have told, where more items would."""


def judge(skills: Sequence[Sequence[Measure]], smallest: float, single_models: bool = False) -> list[Judged]:
    """What became of skills, all claims together at `ALPHA`.

    Args:
        skills: Of each its own measure first; then how unlikely the right answers are, where that is known.
        smallest: The smallest loss that matters, as a share.
        single_models: Whether one run each is asked about itself, and not about the pipeline that made it.
    """
    asked = [_asked(measures, smallest) for measures in skills]
    p_values = [
        (skill, place, m.p) for skill, own in enumerate(asked) for place, m in enumerate(own) if m.p is not None
    ]
    corrected = holm([p for *_, p in p_values])
    by_measure = {(skill, place): p for (skill, place, _), p in zip(p_values, corrected, strict=True)}
    return [
        _judged(own, [by_measure.get((skill, place)) for place in range(len(own))], smallest, single_models)
        for skill, own in enumerate(asked)
    ]


def _asked(measures: Sequence[Measure], smallest: float) -> Sequence[Measure]:
    """The skill's own measure; the others too where that has no headroom."""
    return measures[:1] if measures[0].can_show(smallest) else measures


def _judged(measures: Sequence[Measure], p_values: Sequence[float | None], smallest: float, single: bool) -> Judged:
    for measure, p in zip(measures, p_values, strict=True):
        bounds = measure.bounds(1 - 2 * ALPHA)
        matters = bounds is not None and bounds[1] >= measure.margin(smallest)
        if p is not None and p <= ALPHA and measure.loss > 0 and matters:
            return _said(Status.LOST, measure, "the loss is beyond noise", p)
    able = [measure for measure in measures if measure.can_show(smallest)]
    if not able:
        reason = "the base stands at chance, or at the end of its scale, and nothing else was measured"
        return _said(Status.NO_HEADROOM, measures[0], reason, p_values[0])
    return _unless_lost(able[0], p_values[measures.index(able[0])], smallest, single)


def _unless_lost(measure: Measure, p: float | None, smallest: float, single: bool) -> Judged:
    noise, bounds, margin = measure.noise, measure.bounds(1 - 2 * ALPHA), measure.margin(smallest)
    if noise is None or bounds is None:
        return _said(Status.CANNOT_TELL, measure, measure.gap, p)
    if measure.headroom is None:
        return _said(Status.CANNOT_TELL, measure, "nobody declared between which values its metric lies", p)
    if noise.runs < 2 and not single:
        return _said(Status.CANNOT_TELL, measure, "one seed says nothing of others", p)
    if bounds[1] < margin:
        return _said(Status.KEPT, measure, "a loss that matters would have been seen", p)
    # Of the two questions, whether it was lost and whether a loss that matters is ruled out, the easier one.
    away = max(measure.loss, margin - measure.loss) / _FOUND
    left = away**2 - noise.seeds
    if left <= 0:
        return _said(Status.CANNOT_TELL, measure, "its seeds scatter too much, however many items there are", p)
    needed = max(math.ceil(noise.count * noise.items / left), noise.count + 1)
    return _said(Status.TOO_FEW, measure, f"about {needed:,} items would tell", p, needed)


def _said(status: Status, measure: Measure, reason: str, p: float | None, needed: int | None = None) -> Judged:
    low, high = (None, None) if (ends := measure.bounds(0.95)) is None else map(measure.share, ends)
    return Judged(status=status, measure=measure, reason=reason, low=low, high=high, p=p, items_needed=needed)


@dataclass(frozen=True, kw_only=True)
class Flips:
    """How many items changed sides, mean over runs."""

    lost: float
    """Right for the base, wrong now."""
    gained: float
    items: int
    again: float
    """Items that the base itself answers differently when it is scored again: 0, since nothing is drawn by chance."""


def flips(base: NDArray[np.float64], tuned: NDArray[np.float64], again: float = 0.0) -> Flips | None:
    """Items that changed sides.

    Args:
        base: Outcome of each item, shape (items,).
        tuned: Of each run and item, shape (runs, items).
        again: How many the base itself answers differently when it is scored again.

    Returns:
        None where items are not right or wrong.
    """
    if not (np.isin(base, (0, 1)).all() and np.isin(tuned, (0, 1)).all()):
        return None
    return Flips(
        lost=float(((base == 1) & (tuned == 0)).sum(1).mean()),
        gained=float(((base == 0) & (tuned == 1)).sum(1).mean()),
        items=len(base),
        again=again,
    )
