"""Brier score of multiple choice, item by item, also where items have different numbers of choices."""

from __future__ import annotations

from harness.metrics._probabilities import probabilities
from harness.metrics.base import Answered, Measure
from harness.records.scale import Scale


class Brier(Measure):
    """Squared distance between the probabilities of the choices and 1 for the right one, 0 for the others: 0 to 2."""

    summary = "squared error of the choices' probabilities"
    paper = "Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2"
    output_types = ("multiple_choice",)
    higher_is_better = False
    scale = Scale(low=0.0, high=2.0)

    def item(self, answered: Answered) -> float:
        """In [0, 2]."""
        shares = probabilities(answered.answers)
        return sum((share - (place == answered.gold)) ** 2 for place, share in enumerate(shares))
