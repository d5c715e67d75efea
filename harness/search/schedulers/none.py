"""Every trial gets its full training budget."""

from __future__ import annotations

from harness.search.schedulers.base import Scheduler
from harness.study.spec import Search


class NoScheduler(Scheduler):
    """One rung, at fidelity 1."""

    summary = "every trial runs to the end"

    def rungs(self, search: Search) -> tuple[float, ...]:
        """Only the full budget."""
        return (1.0,)
