"""Expected calibration error of multiple choice: how far confidence is from accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from harness.metrics._probabilities import probabilities
from harness.metrics.base import SHARE, Answered, Measure

BINS = 15
"""Of equal width in (0, 1], as in the paper."""


class ExpectedCalibrationError(Measure):
    """Mean distance between confidence (probability of the likeliest choice) and accuracy in 15 bins of confidence."""

    summary = "distance between confidence and accuracy, in 15 bins of confidence"
    paper = "Guo et al. 2017, arXiv 1706.04599"
    output_types = ("multiple_choice",)
    higher_is_better = False
    scale = SHARE

    def item(self, answered: Answered) -> tuple[float, bool]:
        """Confidence, and whether the likeliest choice is right."""
        shares = probabilities(answered.answers)
        best = max(range(len(shares)), key=shares.__getitem__)
        return shares[best], best == answered.gold

    def total(self, items: Sequence[tuple[float, bool]]) -> float:
        """In [0, 1]; a bin counts as often as it has items."""
        bins: dict[int, list[tuple[float, bool]]] = {}
        for confidence, right in items:
            # Bin k holds (k / 15, (k + 1) / 15], closed above as in the paper: a confidence of 1 has a bin.
            bins.setdefault(min(BINS - 1, max(0, -int(-confidence * BINS // 1) - 1)), []).append((confidence, right))
        gaps = [abs(sum(right for _, right in own) - sum(share for share, _ in own)) for own in bins.values()]
        return sum(gaps) / len(items)
