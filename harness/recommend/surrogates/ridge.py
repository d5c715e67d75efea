"""A straight line through every feature: hard to beat where there are few runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.recommend.surrogates._ranked import Ranked, ridge


class Ridge(Ranked):
    """Ridge regression on normal scores."""

    summary = "Ridge regression on ranks, its penalty chosen by leaving each run out."
    paper = "Hoerl and Kennard 1970, Technometrics 12:55-67"

    def members(self) -> Sequence[Any]:
        """Itself."""
        return [ridge()]
