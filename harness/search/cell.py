"""One family on one task of one base model: what to try next. Every cell of a study gets the same budget.

Jobs are asked for several in a row, so that they can train together, but only as long as the sampler learns from what
came before: see `Cell.next`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.records.trial import TrialConfig, TrialResult
from harness.search.design import CellDesign, Job
from harness.search.history import Best, History
from harness.search.proposals import Asker
from harness.search.spending import Spending
from harness.space import Scalar, defaults


class Cell:
    """Asks for the trials of one cell; `restore` or `next` add jobs, `tell` brings their results."""

    def __init__(self, design: CellDesign) -> None:
        self.design = design
        self.history = History(design)
        self.spending = Spending(self.history)
        self._asker = Asker(design.family.space, design.sampler)
        self.exhausted = False
        """Whether every point of its space was tried."""
        self.gave_up: str | None = None
        """Why it asks for nothing any more although its budget is not used."""

    def restore(self, number: int, params: Mapping[str, Scalar], fidelity: float) -> Job:
        """Add a job that an earlier driver asked for, in the order it was asked.

        Args:
            number: Of the trial in its cell.
            params: Its point in the family's space.
            fidelity: Where the job stops: one of the design's rungs.
        """
        if number == len(self.history.points):  # a higher rung of a known trial adds no point
            self.history.points.append(dict(params))
        job = self.design.job(number, fidelity)
        self.history.ask(job)
        return job

    def tell(self, job: Job, result: TrialResult) -> None:
        """Bring a job's result.

        Args:
            job: From `next` or `restore`.
            result: Its record.
        """
        self.history.tell(job, result)
        self.spending.tell(result)

    def next(self, limit: int = 1, waiting: bool = False) -> list[Job]:
        """The next jobs, all at one rung; none when nothing can be started now (see `History.running`).

        Going on comes before new trials. Of new trials, those that depend on no result may all start; after them, as
        many may be without a result as half of those that have one.

        Args:
            limit: Most jobs.
            waiting: Whether a worker has nothing to do otherwise; then one new trial may start in any case.
        """
        if self.gave_up is not None:
            return []
        # `or` asks in this order and stops at the first that has jobs: jobs of two rungs cannot train together.
        new = int(min(limit, max(self._new_allowed(), int(waiting))))
        return (
            self._several(self._promotion, limit)
            or self._several(self._new, new)
            or self._several(self._last_resort, 1)
        )

    def config(self, job: Job) -> TrialConfig:
        """The job's trial."""
        return self.design.config(self.history.points[job.number], job.rung)

    def best(self) -> Best | None:
        """The best scored trial at full fidelity, the earlier of equals; None where there is none."""
        return self.history.best()

    @property
    def planned_jobs(self) -> int:
        """About how many jobs there will be in all."""
        if self.exhausted or self.gave_up is not None:
            return len(self.history.results)
        return max(1, round(self.spending.paid_jobs))

    @property
    def note(self) -> str | None:
        """Why the cell ended before its budget, or None."""
        if not self.exhausted:
            return self.gave_up
        budget = self.design.budget
        used = f"{self.spending.spent:.3g} of {budget.amount:g} {'seconds' if budget.in_seconds else 'trials'}"
        count = len(self.history.points)
        return f"{self.design.label}: every point of its space was tried ({count}), which used {used}"

    def _several(self, propose: Callable[[], Job | None], limit: int) -> list[Job]:
        jobs: list[Job] = []
        # Each counts as running before the next is proposed, so that budget and scheduler see it.
        while len(jobs) < limit and (job := propose()) is not None and (not jobs or job.rung == jobs[0].rung):
            self.history.ask(job)
            jobs.append(job)
        return jobs

    def _new_allowed(self) -> float:
        """New trials that may start before more results are in."""
        tried = len(self.history.points)
        if tried < self.design.independent:
            return self.design.independent - tried
        # Half of what was seen: enough to fill packs, and the sampler still learns from most of what it asks for.
        return max(1, len(self.history.seen) // 2) - self.history.running

    def _promotion(self) -> Job | None:
        promotion = self.design.scheduler.promote(self.history.rungs, self.design.search)
        if promotion is None:
            return None
        job = Job(promotion.number, promotion.rung)
        return job if self.spending.affords(job) else None

    def _new(self) -> Job | None:
        job = Job(len(self.history.points), 0)
        if self.exhausted or not self.spending.affords(job):
            return None
        point = self._ask()
        if point is None:
            self.exhausted = True
            return None
        self.history.points.append(point)
        return job

    def _ask(self) -> dict[str, Scalar] | None:
        design, tried = self.design, len(self.history.points)
        if not tried:  # so that no family is judged without the settings that its paper recommends
            return defaults(design.family.space)
        names = (design.seed, design.label, tried)
        return self._asker.ask(self.history.observations(), names)

    def _last_resort(self) -> Job | None:
        """When nothing runs and no trial reached full fidelity: the best survivor goes on, whatever its rank."""
        if self.history.running or self.design.top in self.history.standing:
            return None
        for rung in reversed(range(self.design.top)):
            for _, number in self.history.rungs[rung].ranking:
                job = Job(number, rung + 1)
                if job not in self.history.results:
                    return job if self.spending.affords(job) else None
        return None
