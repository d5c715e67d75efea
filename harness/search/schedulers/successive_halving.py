"""Asynchronous successive halving: many trials start, of every `reduction` at a rung the best one goes on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from harness.search.schedulers.base import Promotion, Rung, Scheduler
from harness.study.spec import Search


class SuccessiveHalving(Scheduler):
    """ASHA: promotes as soon as a trial is in the best 1/reduction of those seen at its rung; nothing waits."""

    summary = "asynchronous successive halving (ASHA)"
    paper = "Li et al. 2020, arXiv:1810.05934"

    def rungs(self, search: Search) -> tuple[float, ...]:
        """1, 1/reduction, 1/reduction², ... down to `min_fidelity`, rising."""
        falling = [1.0]
        while (lower := float(search.reduction) ** -len(falling)) >= search.min_fidelity * (1 - 1e-9):
            falling.append(round(lower, 6))
        return tuple(reversed(falling))

    def promote(self, rungs: Sequence[Rung], search: Search) -> Promotion | None:
        """From the highest rung down, the best not yet promoted among the best 1/reduction (ties: lower number)."""
        for index in reversed(range(len(rungs) - 1)):
            rung = rungs[index]
            for _, number in islice(rung.ranking, len(rung.values) // search.reduction):
                if number not in rung.promoted:
                    return Promotion(number, index + 1)
        return None
