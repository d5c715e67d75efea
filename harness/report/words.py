"""Numbers as readers expect them: sensible digits, units, a true minus sign, and "absent" instead of an invented zero."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypeGuard

from harness.analysis.forgetting import nats_lost
from harness.records.scale import Scale

MINUS = "\u2212"
"""As wide as a plus and on its height; a hyphen is neither."""

NOISE = math.log(100)
"""Nats by which a token got more unlikely, from which on no text of a model is to be trusted: a hundredth of its probability."""


@dataclass(frozen=True)
class Unit:
    """How the values of one metric are shown."""

    metric: str
    higher_is_better: bool = True
    scale: Scale = field(default_factory=Scale)
    """Between which values it lies; of a metric that nobody declared one for, values are shown as they are."""

    @property
    def percent(self) -> bool:
        """Whether the metric is a share, shown as a percentage with one decimal."""
        return self.scale.is_share

    @property
    def factor(self) -> float:
        """What a stored value is multiplied with before it is shown."""
        return 100.0 if self.percent else 1.0

    @property
    def name(self) -> str:
        """The unit of a level, for axes: `%` or the metric's name in words."""
        return "%" if self.percent else self.metric.replace("_", " ")

    @property
    def difference_name(self) -> str:
        """The unit of a difference, for axes."""
        return "points" if self.percent else self.name

    def level(self, value: float | None) -> str | None:
        """A score with its unit."""
        if not known(value):
            return None
        return f"{self.digits(value)} %" if self.percent else f"{self.digits(value)} {self.name}"

    def digits(self, value: float | None) -> str | None:
        """A score without its unit."""
        if not known(value):
            return None
        return minus(f"{value * self.factor:.{self._decimals}f}")

    def difference(self, value: float | None) -> str | None:
        """A difference with sign and unit."""
        return None if not known(value) else f"{self.signed(value)} {self.difference_name}"

    def signed(self, value: float | None) -> str | None:
        """A difference with sign, without its unit; what rounds to nothing carries no sign."""
        if not known(value):
            return None
        text = f"{value * self.factor:+.{self._decimals}f}"
        # -0.04 points round to -0.0, which would read as a loss.
        return minus(text if float(text) else text[1:])

    def lost(self, value: float | None) -> str | None:
        """Forgetting in words: `6.2 points lost`, or gained where it is negative."""
        if not known(value):
            return None
        text = (self.digits(abs(value)) or "").lstrip(MINUS)
        return f"{text} {self.difference_name} {'gained' if value < 0 and float(text) else 'lost'}"

    def surprised(self, base: float, tuned: float) -> str | None:
        """How much less likely a model finds given texts, in the metric's unit and in words; None for other metrics.

        Args:
            base: The base's score.
            tuned: The tuned model's.
        """
        nats = None if self.scale.width else nats_lost(base, tuned, self.metric, self.higher_is_better)
        if nats is None:
            return None
        return f"{self.name} {number(base)} to {number(tuned)}, {perplexed(nats)}"

    def span(self, low: float | None, high: float | None) -> str | None:
        """An interval of differences, without unit.

        Args:
            low: Lower end in the metric's own unit; None, NaN and infinities give None.
            high: Upper end.
        """
        if not known(low) or not known(high):
            return None
        return f"{self.signed(low)} to {self.signed(high)}"

    @property
    def _decimals(self) -> int:
        return 1 if self.percent else 3


def perplexed(nats: float) -> str:
    """What it means that a token (byte) got more unlikely: `29.2 % more perplexed`, `1,000 times as perplexed: ...`.

    Args:
        nats: By how much; negative where it got likelier.
    """
    times, more = math.exp(abs(nats)), "more" if nats > 0 else "less"
    if times < 2:
        return f"{100 * (times - 1):.1f} % {more} perplexed"
    noise = ": its answers are noise" if nats > NOISE else ""
    return f"{number(times)} times {'as' if nats > 0 else 'less'} perplexed{noise}"


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def minus(text: str) -> str:
    """The same number with a typographic minus sign."""
    return text.replace("-", MINUS)


def seconds(value: float | None) -> str | None:
    """A duration: 0.42 s, 12.3 s, 4.5 min, 3.2 h."""
    if value is None or not math.isfinite(value):
        return None
    if value == 0:
        return "0 s"
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (math.inf, 3600, "h")):
        if value < limit:
            return f"{value / size:.2f} {unit}" if value / size < 1 else f"{value / size:,.1f} {unit}"
    return None


def size(value: float | None) -> str | None:
    """Bytes as kB, MB or GB (powers of 1,000)."""
    if value is None or not math.isfinite(value):
        return None
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} bytes"


def number(value: float | None, digits: int = 3) -> str | None:
    """A number of no particular unit.

    Args:
        value: None, NaN and infinities give None.
        digits: Significant ones, of a number that is not whole.
    """
    if value is None or not math.isfinite(value):
        return None
    # Beyond 1e15 a float no longer holds every whole number, so its last digits would be invented.
    if float(value).is_integer() and abs(value) < 1e15:
        return minus(f"{value:,.0f}")
    # Significant digits rather than decimals: 0.000123 must not read as 0.000.
    return minus(f"{value:,.0f}" if 999.5 <= abs(value) < 1e15 else f"{value:.{digits}g}")


def money(value: float | None, currency: str) -> str | None:
    """An amount with two decimals, or with two significant digits below one cent.

    Args:
        value: None, NaN and infinities give None.
        currency: Written behind the amount.
    """
    if value is None or not math.isfinite(value):
        return None
    return f"{value:,.2f} {currency}" if value >= 0.01 or value == 0 else f"{value:.2g} {currency}"


def p_value(value: float | None) -> str | None:
    """A p-value: three decimals, `< 0.001` below."""
    if value is None or not math.isfinite(value):
        return None
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 trial`, `2,000 trials`.

    Args:
        value: How many.
        noun: Of one.
        plural: Where it is not the noun with an s.
    """
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else "none"
