"""One trial while it runs: what it was given, and what its record will say.

Whatever goes wrong with one trial is that trial's record; only a user's mistake (`SpecError`), a disk that refuses, and
an interrupt go up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from harness.cost.meter import Meter
from harness.errors import HarnessError, StorageError, describe
from harness.files import now
from harness.records.execution import Execution
from harness.records.trial import COMPLETE, CurvePoint, Ended, PathPoint, TrialConfig
from harness.training.checkpoint import Progress
from harness.trial.accounts import Accounts
from harness.trial.failures import Split, ended_by, out_of_memory
from harness.trial.process import WarmProcess
from harness.trial.workspace import Workspace

if TYPE_CHECKING:
    from harness.evaluation.evaluate import Evaluated
    from harness.training.learner import Learner

T = TypeVar("T")


@dataclass(kw_only=True)
class Run:
    """A trial while it runs."""

    config: TrialConfig
    workspace: Workspace
    process: WarmProcess
    accounts: Accounts
    started_at: str = field(default_factory=now)
    notes: list[str] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    evaluated: list[Evaluated] = field(default_factory=list)
    """Final scores: the task's own first, then the off-target suite."""
    path: list[PathPoint] = field(default_factory=list)
    execution: Execution = field(default_factory=Execution)
    saved_at: float = field(default_factory=time.monotonic)
    """When it was last saved, or started; see `trial.midway`."""
    outcome: Ended = COMPLETE
    """How it ends, unless something ends it sooner."""

    @property
    def meter(self) -> Meter:
        """Its clocks."""
        return self.accounts.meter

    @property
    def traceback_file(self) -> Path:
        """Where an error that nobody foresaw is written."""
        return self.workspace.paths.traceback(self.config.key)

    def attempt(self, action: Callable[[], T | Ended], goes_up: type[HarnessError] = StorageError) -> T | Ended:
        """Do something for this trial alone.

        Args:
            action: What to do; an `Ended` that it returns, and what it raises, ends this trial and nothing else.
            goes_up: Errors that are raised again instead.

        Returns:
            What the action returns, or how it ended the trial.
        """
        try:
            result = action()
        except goes_up:
            raise
        except Exception as error:
            result = ended_by(error, self.traceback_file)
        if isinstance(result, Ended):
            self.outcome = result
        return result

    def progress(self, learner: Learner) -> Progress:
        """What it has behind it in the stage that trains."""
        return Progress(
            key=self.config.key,
            step=learner.step,
            curve=tuple(self.curve),
            losses=(learner.losses.total, learner.losses.steps),
            train_seconds=self.accounts.train_seconds,
            tokens=self.accounts.tokens,
            total_s=self.accounts.total_s,
        )

    def add_point(self, fraction: float, step: int, loss: float | None, score: float) -> None:
        """Add a point to the learning curve.

        Args:
            fraction: Of the full training budget.
            step: Optimiser steps done.
            loss: Mean loss since the last point, in nats per supervised token.
            score: The task's metric.
        """
        self.curve.append(
            CurvePoint(
                fraction=fraction,
                step=step,
                train_seconds=self.accounts.train_seconds,
                tokens=self.accounts.tokens,
                loss=loss,
                score=score,
            )
        )


class OfRun(Protocol):
    """A state of a trial, which knows its run."""

    @property
    def run(self) -> Run:
        """The trial."""
        ...


State = TypeVar("State", bound=OfRun)


def each(states: Sequence[State], action: Callable[[State], T | Ended]) -> list[T]:
    """What an action makes of each trial; those that it ends are left out.

    Args:
        states: Trials, where they stand.
        action: What to do with each; see `Run.attempt`.
    """
    results = [state.run.attempt(lambda state=state: action(state)) for state in states]  # type: ignore[misc]
    return [result for result in results if not isinstance(result, Ended)]


def shared(runs: Sequence[Run], phase: str, action: Callable[[], T]) -> T | Ended | Split:
    """Do something for several trials at once: they are charged in equal shares, and an error is nobody's own.

    Args:
        runs: The trials.
        phase: What it is charged to.
        action: What to do.

    Returns:
        What the action returns. Where it raises something: how that ends the trial if there is only one, else a split.
    """
    try:
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(run.meter.phase(phase, 1 / len(runs)))
            return action()
    except StorageError:
        raise
    except Exception as error:
        if len(runs) > 1:
            return Split(f"training together failed ({describe(error)})", out_of_memory(error))
        return ended_by(error, runs[0].traceback_file)
