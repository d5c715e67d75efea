"""What a cell has tried, and what came back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.records.trial import Score, TrialResult, TrialStatus
from harness.search.design import CellDesign, Job
from harness.search.proposals import Observation
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
    """Points of a cell's space by number, and the results of its jobs: None for those that still run."""

    def __init__(self, design: CellDesign) -> None:
        self.design = design
        self.points: list[dict[str, Scalar]] = []
        self.results: dict[Job, TrialResult | None] = {}

    @property
    def finished(self) -> Mapping[Job, TrialResult]:
        """Jobs with a result."""
        return {job: result for job, result in self.results.items() if result is not None}

    @property
    def running(self) -> int:
        """Jobs without a result."""
        return len(self.results) - len(self.finished)

    @property
    def standing(self) -> list[int]:
        """Rungs of the jobs that run or have a score: from each of them a trial may still go on."""
        return [job.rung for job, r in self.results.items() if r is None or self.value(r) is not None]

    def value(self, result: TrialResult) -> float | None:
        """Score of a result with larger better; None where it has none that can be compared."""
        # A diverged trial may have a score that is not a number; it counts as a failure.
        target = result.target
        if result.status != TrialStatus.COMPLETE or target is None or not math.isfinite(target.value):
            return None
        return target.value if self.design.higher_is_better else -target.value

    def rung(self, index: int) -> Rung:
        """What is known at one rung."""
        values = {job.number: self.value(result) for job, result in self.finished.items() if job.rung == index}
        promoted = frozenset(job.number for job in self.results if job.rung == index + 1)
        return Rung(self.design.rungs[index], values, promoted)

    def rungs(self) -> Sequence[Rung]:
        """What is known at every rung."""
        return [self.rung(index) for index in range(len(self.design.rungs))]

    def ranking(self, index: int) -> list[int]:
        """Numbers of the trials with a score at a rung, the best first, the earlier of equals first."""
        values = self.rung(index).values
        return [number for _, number in sorted((-v, number) for number, v in values.items() if v is not None)]

    def best(self) -> Best | None:
        """The best scored trial at full fidelity, the earlier of equals; None where there is none."""
        values = self.rung(self.design.top).values
        scored = [Best(number, self.points[number], value) for number, value in values.items() if value is not None]
        return min(scored, key=lambda best: (-best.value, best.number), default=None)

    def scored(self) -> list[Score]:
        """The validation scores of its trials at full fidelity, in the order they were asked for."""
        full = [result for job, result in self.finished.items() if job.rung == self.design.top]
        return [result.target for result in full if result.target is not None and self.value(result) is not None]

    def observations(self) -> list[Observation]:
        """What the sampler sees: scores of the highest rung that has enough of them to compare.

        Enough is two more than the space has parameters, as in BOHB (Falkner et al. 2018, arXiv:1807.01774, section 4).
        """
        rungs = self.rungs()
        enough = len(self.design.family.space) + 2
        scored = [sum(value is not None for value in rung.values.values()) for rung in rungs]
        # Scores of two fidelities are not comparable, so the sampler sees one rung and none of the others.
        level = max((index for index, count in enumerate(scored) if count >= enough), default=0)
        failed = {number for rung in rungs for number, value in rung.values.items() if value is None}
        values = [rungs[level].values.get(number) for number in range(len(self.points))]
        return [
            Observation(params=point, value=value, running=value is None and number not in failed)
            for number, (point, value) in enumerate(zip(self.points, values, strict=True))
        ]
