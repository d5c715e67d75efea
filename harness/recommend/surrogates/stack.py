"""A mean of a forest, boosted trees and a ridge regression, which err in different ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.recommend.surrogates._ranked import Ranked, boosted, forest, ridge


class Stack(Ranked):
    """Equal weights: where there are few tasks, weights found by cross-validation scatter more than they gain."""

    summary = "The mean of a forest, boosted trees and ridge regression, all on ranks."
    paper = "Breiman 1996, Machine Learning 24:49-64; equal weights: Clemen 1989, International Journal of Forecasting 5:559-583"

    def members(self) -> Sequence[Any]:
        """Its three kinds, which miss in different ways."""
        return [forest(self.seed), boosted(self.seed), ridge()]
