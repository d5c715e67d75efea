"""Trees that each learn what those before them missed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.recommend.surrogates._ranked import Ranked, boosted


class BoostedTrees(Ranked):
    """Gradient boosting on normal scores."""

    summary = "Gradient-boosted trees on ranks."
    paper = "Friedman 2002, Computational Statistics and Data Analysis 38:367-378"

    def members(self) -> Sequence[Any]:
        """Itself."""
        return [boosted(self.seed)]
