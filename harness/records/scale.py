"""Between which values a metric lies: what a score says of it beside its direction."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records.codec import Record


@dataclass(frozen=True, kw_only=True)
class Scale(Record):
    """Between which values a metric lies, as declared; an end that is not known, or that there is none of, is None."""

    low: float | None = None
    high: float | None = None

    @property
    def width(self) -> float | None:
        """From end to end; None where one of them is not known."""
        return None if self.low is None or self.high is None else self.high - self.low

    @property
    def is_share(self) -> bool:
        """Whether it runs from 0 to 1, so that values may be shown as percentages."""
        return (self.low, self.high) == (0.0, 1.0)

    def best(self, higher_is_better: bool) -> float | None:
        """The end towards better."""
        return self.high if higher_is_better else self.low

    def worst(self, higher_is_better: bool) -> float | None:
        """The end towards worse."""
        return self.low if higher_is_better else self.high

    def holds(self, value: float) -> bool:
        """Whether a value lies on the scale, apart from rounding."""
        slack = 1e-6 * (self.width or 1.0)
        return (self.low is None or value >= self.low - slack) and (self.high is None or value <= self.high + slack)
