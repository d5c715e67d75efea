"""What a cell is before any of its trials: one family on one task of one base model, and its budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from harness.records.trial import Evaluation, ModelRef, TaskRef, TrialConfig, derive_seed
from harness.search.early_stopping import FIRST
from harness.search.samplers.base import Sampler
from harness.search.schedulers.base import Scheduler
from harness.space import Scalar
from harness.study.family import Family
from harness.study.spec import Budget, Search


class Place(NamedTuple):
    """Where a trial of the search belongs, by the names in the study file."""

    base_model: str
    task: str
    family: str


@dataclass(frozen=True)
class Job:
    """A trial of the cell at a rung."""

    number: int
    rung: int


@dataclass(frozen=True, kw_only=True)
class CellDesign:
    """Everything about a cell that its trials do not change."""

    search: Search
    budget: Budget
    seed: int
    """The study's."""
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
    def place(self) -> Place:
        """Which of the study's cells it is."""
        return Place(base_model=self.model.name, task=self.task.name, family=self.family.name)

    @property
    def label(self) -> str:
        """How messages and seeds name the cell."""
        return "/".join(self.place)

    @cached_property
    def rungs(self) -> tuple[float, ...]:
        """Fidelities, rising to 1."""
        return self.scheduler.rungs(self.search)

    @property
    def top(self) -> int:
        """Index of the rung at full fidelity."""
        return len(self.rungs) - 1

    @cached_property
    def independent(self) -> float:
        """New trials that may start before any result is in.

        Where trials go over rungs, at most as many as it takes to bring one of them to the end; else few where families
        may give up.
        """
        # What starts together cannot learn from each other, and cannot be stopped in time.
        count = self.sampler.independent
        if self.top:
            return min(count, float(self.search.reduction) ** self.top)
        return count if self.search.give_up is None else min(count, FIRST)

    def share(self, rung: int) -> float:
        """Training that a job at this rung does, in full trials."""
        # Only a pipeline of one stage leaves a checkpoint that the next rung can resume from.
        resumed = self.rungs[rung - 1] if rung and len(self.family.stages) == 1 else 0.0
        return self.rungs[rung] - resumed

    def share_to_full(self, rung: int) -> float:
        """Training that a trial standing at this rung still needs to reach fidelity 1, in full trials."""
        return sum(self.share(higher) for higher in range(rung + 1, len(self.rungs)))

    def job(self, number: int, fidelity: float) -> Job:
        """The job of a trial.

        Args:
            number: Of the trial in its cell.
            fidelity: Where it stops: one of `rungs`.
        """
        return Job(number, self.rungs.index(fidelity))

    def config(self, params: Mapping[str, Scalar], rung: int) -> TrialConfig:
        """The trial at one point of the space.

        Args:
            params: The point; parameters left out take their defaults.
            rung: Index of the fidelity where it stops.
        """
        return TrialConfig(
            pipeline=self.family.pipeline(self.model, params),
            task=self.task,
            steps=self.steps(params),
            fidelity=self.rungs[rung],
            seed=derive_seed(self.seed, "search"),  # the same for all, so that points differ by their settings only
            evaluation=self.evaluation,
        )
