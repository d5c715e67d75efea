"""One family on one task of one base model: what was tried, what it cost, and what to try next.

Every cell of a study gets the same budget. In trials, a job at fidelity f that resumes from a checkpoint at g costs
f - g of a trial (f where it cannot resume: several stages start again), so that a scheduler's budget of 8 trials is
as much training as 8 full trials. In seconds, a job costs what its record says it would have cost alone, failures and
reused records included, so that nobody gains by training together; what still runs counts at its expected cost.

Jobs are asked for several in a row, so that they can train together, but only as long as the sampler learns from what
came before: see `Cell.next`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.records.trial import (
    CostRecord,
    Evaluation,
    ModelRef,
    Score,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
    derive_seed,
)
from harness.search.early_stopping import FIRST
from harness.search.proposals import Observation, ask, size
from harness.search.samplers.base import Sampler
from harness.search.schedulers.base import Rung, Scheduler
from harness.space import Scalar, defaults
from harness.study.family import Family
from harness.study.spec import Search, StudySpec

_EPSILON = 1e-6


@dataclass(frozen=True)
class CellDesign:
    """Everything about a cell that its trials do not change."""

    study: StudySpec
    family: Family
    model: ModelRef
    task: TaskRef
    higher_is_better: bool
    evaluation: Evaluation
    steps: Callable[[Mapping[str, Scalar]], int]
    """Optimiser steps of a full-fidelity trial with these parameters."""
    sampler: Sampler
    scheduler: Scheduler
    guess_s: float = 0.0
    """Expected seconds of a full trial before any has finished."""

    @property
    def label(self) -> str:
        """How messages and seeds name the cell."""
        return f"{self.model.name}/{self.task.name}/{self.family.name}"

    @property
    def search(self) -> Search:
        """The study's search settings."""
        return self.study.search

    @cached_property
    def rungs(self) -> tuple[float, ...]:
        """Fidelities, rising to 1."""
        return self.scheduler.rungs(self.search)

    @cached_property
    def independent(self) -> float:
        """New trials that may start before any result is in.

        Where trials go over rungs, at most as many as it takes to bring one of them to the end; else few where families
        may give up.
        """
        rungs, count = len(self.rungs) - 1, self.sampler.independent
        if rungs:
            return min(count, float(self.search.reduction) ** rungs)
        return count if self.search.give_up is None else min(count, FIRST)

    @property
    def budget(self) -> float:
        """Trials, or seconds where the study's budget is in seconds."""
        budget = self.study.budget
        return float(budget.trials if budget.trials is not None else budget.gpu_seconds or 0.0)

    @property
    def in_seconds(self) -> bool:
        """Whether the budget is in seconds."""
        return self.study.budget.gpu_seconds is not None

    def share(self, rung: int) -> float:
        """Training that a job at this rung does, in full trials."""
        resumed = self.rungs[rung - 1] if rung and len(self.family.stages) == 1 else 0.0
        return self.rungs[rung] - resumed

    def share_to_full(self, rung: int) -> float:
        """Training that a trial standing at this rung still needs to reach fidelity 1, in full trials."""
        return sum(self.share(higher) for higher in range(rung + 1, len(self.rungs)))

    def config(self, params: Mapping[str, Scalar], rung: int) -> TrialConfig:
        """The trial at one point of the space; every search trial of a study has the same seed."""
        return TrialConfig(
            pipeline=self.family.pipeline(self.model, params),
            task=self.task,
            steps=self.steps(params),
            fidelity=self.rungs[rung],
            seed=derive_seed(self.study.seed, "search"),
            evaluation=self.evaluation,
        )


@dataclass(frozen=True)
class Job:
    """A trial of the cell at a rung."""

    number: int
    rung: int


@dataclass(frozen=True)
class Best:
    """The trial with the best validation score at full fidelity."""

    number: int
    params: Mapping[str, Scalar]
    value: float
    """Score with larger better: the sign of a loss is turned."""


class Cell:
    """The state of one cell; `restore` or `next` add jobs, `tell` brings their results."""

    def __init__(self, design: CellDesign) -> None:
        self.design = design
        self.points: list[dict[str, Scalar]] = []
        self.results: dict[Job, TrialResult | None] = {}
        self.exhausted = False
        self.gave_up: str | None = None
        """Why it asks for nothing any more although its budget is not used."""

    def restore(self, number: int, params: Mapping[str, Scalar], fidelity: float) -> Job:
        """Add a job that an earlier driver asked for, in the order it was asked."""
        if number == len(self.points):
            self.points.append(dict(params))
        job = Job(number, self.design.rungs.index(fidelity))
        self.results[job] = None
        return job

    def tell(self, job: Job, result: TrialResult) -> None:
        """Bring a job's result."""
        self.results[job] = result

    def next(self, limit: int = 1, waiting: bool = False) -> list[Job]:
        """The next jobs, all at one rung; none when nothing can be started now (see `running`).

        Going on comes before new trials. Of new trials, those that depend on no result may all start; after them, as
        many may be without a result as half of those that have one.

        Args:
            limit: Most jobs.
            waiting: Whether a worker has nothing to do otherwise; then one new trial may start in any case.
        """
        if self.gave_up is not None:
            return []
        new = int(min(limit, max(self._room(), int(waiting))))
        return (
            self._several(self._promotion, limit)
            or self._several(self._new, new)
            or self._several(self._last_resort, 1)
        )

    def _several(self, propose: Callable[[], Job | None], limit: int) -> list[Job]:
        jobs: list[Job] = []
        while len(jobs) < limit and (job := propose()) is not None and (not jobs or job.rung == jobs[0].rung):
            self.results[job] = None
            jobs.append(job)
        return jobs

    def _room(self) -> float:
        """New trials that may start before more results are in."""
        if len(self.points) < self.design.independent:
            return self.design.independent - len(self.points)
        seen = {job.number for job, result in self.results.items() if result is not None}
        return max(1, len(seen) // 2) - self.running

    def config(self, job: Job) -> TrialConfig:
        """The job's trial."""
        return self.design.config(self.points[job.number], job.rung)

    @property
    def running(self) -> int:
        """Jobs without a result."""
        return sum(result is None for result in self.results.values())

    @property
    def spent(self) -> float:
        """Part of the budget that is used, running jobs included, in the budget's unit."""
        return sum(self._cost(job, result) for job, result in self.results.items())

    @property
    def planned_jobs(self) -> int:
        """About how many jobs the whole budget pays for."""
        if self.exhausted or self.gave_up is not None:
            return len(self.results)
        paid = len(self.results) + max(0.0, self.design.budget - self.spent) / max(self._expected(0), _EPSILON)
        return max(1, round(min(paid, self.size * len(self.design.rungs))))

    @property
    def size(self) -> float:
        """Points of its space; may be infinite."""
        return size(self.design.family.space)

    @property
    def note(self) -> str | None:
        """Why the cell ended before its budget, or None."""
        if not self.exhausted:
            return self.gave_up
        unit = "seconds" if self.design.in_seconds else "trials"
        used = f"{self.spent:.3g} of {self.design.budget:g} {unit}"
        return f"{self.design.label}: every point of its space was tried ({len(self.points)}), which used {used}"

    def best(self) -> Best | None:
        """The best scored trial at full fidelity, the earlier of equals; None where there is none."""
        values = self._rung(len(self.design.rungs) - 1).values
        scored = [(-value, number) for number, value in values.items() if value is not None]
        if not scored:
            return None
        value, number = min(scored)
        return Best(number, self.points[number], -value)

    def scored(self) -> list[Score]:
        """The validation scores of its trials at full fidelity, in the order they were asked for."""
        top = len(self.design.rungs) - 1
        found = [(r, r.target) for job, r in self.results.items() if job.rung == top and r is not None]
        return [target for result, target in found if target is not None and self._value(result) is not None]

    @property
    def trials_left(self) -> int:
        """Trials that may still reach full fidelity with what is left of the budget, running ones included."""
        top = len(self.design.rungs) - 1
        there = [result for job, result in self.results.items() if job.rung == top]
        paid = self._fits(top) + sum(result is None for result in there)
        return int(min(paid, self.size - sum(result is not None for result in there)))

    @property
    def unused(self) -> float:
        """Training that the budget still pays for beyond what runs, in full trials."""
        return min(self._fits(0), self.size - len(self.points)) * self.design.share(0)

    @property
    def full_s(self) -> float:
        """Wall seconds that a full trial took here so far, on average, loading left out."""
        return self._per_trial(lambda result: _active(result.cost)) or 0.0

    def _fits(self, rung: int) -> int:
        return int(max(0.0, self.design.budget - self.spent) / max(self._expected(rung), _EPSILON) + _EPSILON)

    def _promotion(self) -> Job | None:
        found = self.design.scheduler.promote(self._all_rungs(), self.design.search)
        return self._affordable(Job(found.number, found.rung)) if found else None

    def _new(self) -> Job | None:
        job = Job(len(self.points), 0)
        if self.exhausted or not self._affordable(job):
            return None
        point = self._ask()
        if point is None:
            self.exhausted = True
            return None
        self.points.append(point)
        return job

    def _ask(self) -> dict[str, Scalar] | None:
        design = self.design
        if not self.points:
            return defaults(design.family.space)
        names = (design.study.seed, design.label, len(self.points))
        return ask(design.family.space, self._history(), design.sampler, names)

    def _last_resort(self) -> Job | None:
        """When nothing runs and no trial reached full fidelity: the best survivor goes on, whatever its rank."""
        top = len(self.design.rungs) - 1
        if self.running or self._reached(top):
            return None
        for index in reversed(range(top)):
            values = self._rung(index).values
            scored = [(-value, number) for number, value in values.items() if value is not None]
            left = [(value, number) for value, number in sorted(scored) if Job(number, index + 1) not in self.results]
            if left:
                return self._affordable(Job(left[0][1], index + 1))
        return None

    def _affordable(self, job: Job) -> Job | None:
        """The job, if the budget pays for it and then still for bringing one trial to full fidelity."""
        if not self.results:
            return job
        if self.design.in_seconds and not any(self.results.values()):
            return None  # until one has finished, nobody knows what a trial costs
        standing = [
            known.rung for known, result in self.results.items() if result is None or self._value(result) is not None
        ]
        reserve = min(self.design.share_to_full(rung) for rung in (*standing, job.rung))
        cost = self._expected(job.rung) + reserve * self._full_cost()
        return job if self.spent + cost <= self.design.budget * (1 + _EPSILON) else None

    def _reached(self, rung: int) -> bool:
        return any(job.rung == rung and (r is None or self._value(r) is not None) for job, r in self.results.items())

    def _cost(self, job: Job, result: TrialResult | None) -> float:
        if result is None or not self.design.in_seconds:
            return self._expected(job.rung)
        return seconds(result)

    def _expected(self, rung: int) -> float:
        return self.design.share(rung) * self._full_cost()

    def _full_cost(self) -> float:
        """Expected cost of a full trial: 1 trial, or the mean of those that finished."""
        if not self.design.in_seconds:
            return 1.0
        cost = self._per_trial(seconds)
        return self.design.guess_s if cost is None else cost

    def _per_trial(self, measure: Callable[[TrialResult], float]) -> float | None:
        """Mean of a measure over what finished, scaled to full trials; None before anything has."""
        done = [(self.design.share(job.rung), measure(r)) for job, r in self.results.items() if r is not None]
        return sum(measured for _, measured in done) / sum(share for share, _ in done) if done else None

    def _value(self, result: TrialResult) -> float | None:
        target = result.target
        if result.status != TrialStatus.COMPLETE or target is None or not math.isfinite(target.value):
            return None
        return target.value if self.design.higher_is_better else -target.value

    def _rung(self, index: int) -> Rung:
        here = {job.number: r for job, r in self.results.items() if job.rung == index}
        values = {number: self._value(result) for number, result in here.items() if result is not None}
        promoted = frozenset(job.number for job in self.results if job.rung == index + 1)
        return Rung(self.design.rungs[index], values, promoted)

    def _all_rungs(self) -> Sequence[Rung]:
        return [self._rung(index) for index in range(len(self.design.rungs))]

    def _history(self) -> list[Observation]:
        """What the sampler sees: scores of the highest rung that has enough of them to compare (BOHB's rule)."""
        rungs = self._all_rungs()
        enough = len(self.design.family.space) + 2
        scored = [sum(value is not None for value in rung.values.values()) for rung in rungs]
        level = max((index for index, count in enumerate(scored) if count >= enough), default=0)
        failed = {number for rung in rungs for number, value in rung.values.items() if value is None}
        return [self._observation(number, rungs[level], number in failed) for number in range(len(self.points))]

    def _observation(self, number: int, rung: Rung, failed: bool) -> Observation:
        value = rung.values.get(number)
        return Observation(self.points[number], value, running=value is None and not failed)


def seconds(result: TrialResult) -> float:
    """What a trial takes of its family's budget: seconds on accelerators, or wall seconds where it used none.

    They are those that it would have taken alone. Loading is left out: a worker's first trial pays imports and weights
    for all, whichever family it is of.
    """
    cost = result.cost
    alone = _active(cost) + cost.solo_s - cost.total_s
    return cost.gpu_s * alone / cost.total_s if cost.gpu_s and cost.total_s else alone


def _active(cost: CostRecord) -> float:
    return cost.total_s - cost.seconds.get("load", 0.0)
