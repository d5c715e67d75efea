"""What a cell has tried, and what came back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.records.trial import Score, TrialResult, TrialStatus
from harness.search.design import CellDesign, Job
from harness.search.memory import Observation, Tried
from harness.search.schedulers.base import Rung
from harness.space import Scalar


@dataclass(frozen=True)
class Best:
    """The trial with the best validation score at full fidelity."""

    number: int
    params: Mapping[str, Scalar]
    value: float
    """Score with larger better: the sign of a loss is turned."""


class History:
    """Points of a cell's space by number, and the results of its jobs: None for those that still run.

    What follows from them is asked for at every trial, so it is kept up to date rather than counted anew. It does not
    depend on the order in which results come.
    """

    def __init__(self, design: CellDesign) -> None:
        self.design = design
        self.points: list[dict[str, Scalar]] = []
        self.results: dict[Job, TrialResult | None] = {}
        self.asked: list[set[int]] = [set() for _ in design.rungs]
        """Numbers of the trials with a job at each rung."""
        promoted = (*self.asked[1:], frozenset[int]())
        self.rungs = [Rung(fidelity, {}, above) for fidelity, above in zip(design.rungs, promoted, strict=True)]
        """What is known at every rung."""
        self.finished = 0
        """Jobs with a result."""
        self.seen: set[int] = set()
        """Numbers of the trials of which any job has a result."""
        self._failed: set[int] = set()
        self._level = 0
        self._observed = Tried()

    def ask(self, job: Job) -> None:
        """Enter a job that runs now; its point is in `points` already."""
        if job.number == len(self._observed):
            self._observed.append(self._observation(job.number))
        self.results[job] = None
        self.asked[job.rung].add(job.number)

    def tell(self, job: Job, result: TrialResult) -> None:
        """Bring the result of a job that ran.

        Args:
            job: Asked before, and told once.
            result: Its record.
        """
        value = self.value(result)
        self.results[job] = result
        self.rungs[job.rung].add(job.number, value)
        self.finished += 1
        self.seen.add(job.number)
        if value is None:
            self._failed.add(job.number)
        self._observe(job.number)

    @property
    def running(self) -> int:
        """Jobs without a result."""
        return len(self.results) - self.finished

    def running_at(self, index: int) -> int:
        """Jobs at a rung without a result."""
        return len(self.asked[index]) - len(self.rungs[index].values)

    @property
    def standing(self) -> list[int]:
        """Rungs with jobs that run or have a score: from each of them a trial may still go on."""
        return [index for index, rung in enumerate(self.rungs) if self.running_at(index) or rung.ranking]

    def value(self, result: TrialResult) -> float | None:
        """Score of a result with larger better; None where it has none that can be compared."""
        # A diverged trial may have a score that is not a number; it counts as a failure.
        target = result.target
        if result.status != TrialStatus.COMPLETE or target is None or not math.isfinite(target.value):
            return None
        return target.value if self.design.higher_is_better else -target.value

    def best(self) -> Best | None:
        """The best scored trial at full fidelity, the earlier of equals; None where there is none."""
        for negated, number in self.rungs[self.design.top].ranking[:1]:
            return Best(number, self.points[number], -negated)
        return None

    def scored(self) -> list[Score]:
        """The validation scores of its trials at full fidelity, the best first."""
        full = (self.results[Job(number, self.design.top)] for _, number in self.rungs[self.design.top].ranking)
        return [result.target for result in full if result is not None and result.target is not None]

    def observations(self) -> Tried:
        """What the sampler sees: scores of the highest rung that has enough of them to compare.

        Enough is two more than the space has parameters, as in BOHB (Falkner et al. 2018, arXiv:1807.01774, section 4).
        """
        return self._observed

    def _observe(self, number: int) -> None:
        """Bring what the sampler sees of a trial up to date, or of all where it now sees another rung."""
        enough = len(self.design.family.space) + 2
        level = max((index for index, rung in enumerate(self.rungs) if len(rung.ranking) >= enough), default=0)
        # Scores of two fidelities are not comparable, so the sampler sees one rung and none of the others.
        changed, self._level = range(len(self.points)) if level != self._level else (number,), level
        for index in changed:
            self._observed.replace(index, self._observation(index))

    def _observation(self, number: int) -> Observation:
        value = self.rungs[self._level].values.get(number)
        return Observation(
            params=self.points[number], value=value, running=value is None and number not in self._failed
        )
