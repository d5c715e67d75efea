"""What a cell's trials take of its budget, and what the rest of it pays for.

In trials, a job at fidelity f that resumes from a checkpoint at g costs f - g of a trial (f where it cannot resume:
several stages start again), so that a scheduler's budget of 8 trials is as much training as 8 full trials. In seconds,
a job costs what its record says it would have cost alone, failures and reused records included, so that nobody gains by
training together; what still runs counts at its expected cost.
"""

from __future__ import annotations

from fractions import Fraction

from harness.records.trial import CostRecord, TrialResult
from harness.search.design import Job
from harness.search.history import History
from harness.search.proposals import size

_EPSILON = 1e-6
"""Shares of a trial are sums of rounded fidelities, and a budget must not fail for the rounding."""


class Spending:
    """The accounts of one cell. Sums of seconds are exact, so that the order in which results come is of no matter."""

    def __init__(self, history: History) -> None:
        self.history, self.design = history, history.design
        self.size = size(self.design.family.space)
        """Points of the cell's space; may be infinite."""
        self._seconds = self._active_s = Fraction()

    def tell(self, result: TrialResult) -> None:
        """Enter what a job took."""
        self._seconds += Fraction(seconds(result))
        self._active_s += Fraction(_active(result.cost))

    @property
    def spent(self) -> float:
        """Part of the budget that is used, running jobs included, in the budget's unit."""
        in_seconds, history = self.design.budget.in_seconds, self.history
        jobs = (history.running_at(rung) if in_seconds else len(asked) for rung, asked in enumerate(history.asked))
        return float(self._seconds) * in_seconds + sum(count * self.expected(rung) for rung, count in enumerate(jobs))

    @property
    def paid_jobs(self) -> float:
        """About how many jobs the whole budget pays for, done ones included."""
        rest = max(0.0, self.design.budget.amount - self.spent)
        paid = len(self.history.results) + rest / max(self.expected(0), _EPSILON)
        return min(paid, self.size * len(self.design.rungs))

    @property
    def trials_left(self) -> int:
        """Trials that may still reach full fidelity with what is left of the budget, running ones included."""
        top = self.design.top
        paid = self._fits(top) + self.history.running_at(top)
        return int(min(paid, self.size - len(self.history.rungs[top].values)))

    @property
    def unused(self) -> float:
        """Training that the budget still pays for beyond what runs, in full trials."""
        return min(self._fits(0), self.size - len(self.history.points)) * self.design.share(0)

    @property
    def full_s(self) -> float:
        """Wall seconds that a full trial took here so far, on average, loading left out."""
        return self._per_trial(self._active_s) or 0.0

    def affords(self, job: Job) -> bool:
        """Whether the budget pays for the job and then still for bringing one trial to full fidelity."""
        if not self.history.results:
            return True  # planning has refused a budget that cannot fund one trial
        if self.design.budget.in_seconds and not self.history.finished:
            return False  # until one has finished, nobody knows what a trial costs
        reserve = min(self.design.share_to_full(rung) for rung in (*self.history.standing, job.rung))
        cost = self.expected(job.rung) + reserve * self._full_cost()
        return self.spent + cost <= self.design.budget.amount * (1 + _EPSILON)

    def expected(self, rung: int) -> float:
        """Expected cost of a job at a rung, in the budget's unit."""
        return self.design.share(rung) * self._full_cost()

    def _fits(self, rung: int) -> int:
        rest = max(0.0, self.design.budget.amount - self.spent)
        return int(rest / max(self.expected(rung), _EPSILON) + _EPSILON)

    def _full_cost(self) -> float:
        """Expected cost of a full trial: 1 trial, or the mean of those that finished."""
        if not self.design.budget.in_seconds:
            return 1.0
        cost = self._per_trial(self._seconds)
        return self.design.guess_s if cost is None else cost

    def _per_trial(self, total: Fraction) -> float | None:
        """A sum over what finished, scaled to full trials; None before anything has."""
        if not self.history.finished:
            return None
        return float(total) / sum(len(r.values) * self.design.share(i) for i, r in enumerate(self.history.rungs))


def seconds(result: TrialResult) -> float:
    """What a trial takes of its family's budget: seconds on accelerators, or wall seconds where it used none.

    They are those that it would have taken alone. Loading is left out: a worker's first trial pays imports and weights
    for all, whichever family it is of.
    """
    cost = result.cost
    alone = _active(cost) + cost.solo_s - cost.total_s
    # GPU seconds are GPUs held x wall seconds of the share; they shrink or grow with it.
    return cost.gpu_s * alone / cost.total_s if cost.gpu_s and cost.total_s else alone


def _active(cost: CostRecord) -> float:
    """Wall seconds without loading."""
    return cost.total_s - cost.seconds.get("load", 0.0)
