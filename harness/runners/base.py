"""What a runner is: a place where packs of trials run; and what a backend of warm workers must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.records.trial import TrialConfig, TrialStatus
from harness.runners.worker import Duty, find_work


@dataclass(frozen=True)
class Loss:
    """Why a pack did not run to its end."""

    kind: Literal["worker", "spec", "storage", "error"]
    """Its worker died; it raised a `SpecError`, a `StorageError` (a record could not be written), or anything else."""
    status: TrialStatus
    reason: str
    seconds: float = 0.0
    """Wall seconds that it held its worker; those of the last sign of life where nobody saw the worker die."""


@dataclass(frozen=True)
class Ended:
    """A pack that is no longer under way."""

    configs: tuple[TrialConfig, ...]
    loss: Loss | None = None


class Runner(ABC):
    """Runs packs of trials somewhere."""

    workers: int
    """Packs that run at a time."""
    slots: int
    """Packs that should be under way so that no worker waits for the driver."""
    settle_s: float = 0.0
    """How long a record may take to become visible here after its trial ended (shared file systems cache)."""

    @abstractmethod
    def submit(self, configs: Sequence[TrialConfig]) -> None:
        """Have a pack run."""

    @abstractmethod
    def poll(self) -> list[Ended]:
        """What ended since the last call; does not wait."""

    def under_way(self) -> Sequence[Collection[str]]:
        """Keys of the trials of each pack that waits or runs, those of an earlier driver included."""
        return ()

    def leave(self) -> None:
        """End when all is done; workers may stay for a while, for the next driver."""
        self.close()

    def expect(self, packs: int) -> None:  # noqa: B027
        """So many packs will come soon: workers that cost nothing to have may start and import what they need."""

    def close(self) -> None:  # noqa: B027
        """Stop all workers, whatever they do."""


class InlineRunner(Runner):
    """Runs a pack in this process as it is submitted: for tests, debugging and small machines."""

    workers = slots = 1

    def __init__(self, duty: Duty) -> None:
        self.duty = duty
        self._ended: list[Ended] = []

    def submit(self, configs: Sequence[TrialConfig]) -> None:
        """Run the pack now; an error that is not a trial's own goes up."""
        find_work(self.duty.work)(configs, self.duty.workspace)
        self._ended.append(Ended(tuple(configs)))

    def poll(self) -> list[Ended]:
        """The packs run since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def under_way(self) -> Sequence[Collection[str]]:
        """Packs whose end was not reported yet."""
        return [[config.key for config in pack.configs] for pack in self._ended]


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """A worker's job, as its line in `jobs.jsonl` has it."""

    runner: str
    job: str
    """Process id of its controller, or Slurm job id."""
    host: str
    birth: str = ""
    """Start time of the process in clock ticks since boot: tells it from a later one with the same id."""
    gpu: str = ""
    at: str = ""
    duty: str = ""
    """Fingerprint of what it was told, see `Duty.sign`."""


class Backend(ABC):
    """What differs between this machine and Slurm."""

    folder: Path
    """Where submitit keeps what belongs to the jobs, their logs among it."""
    period_s: float
    """Seconds between questions about jobs."""
    starts_early: bool = False
    """Whether a worker may be started before it is certain that there is work."""
    settle_s: float

    @abstractmethod
    def start(self, duty: Duty, running: Sequence[WorkerJob]) -> WorkerJob:
        """Submit a worker beside those running."""

    @abstractmethod
    def dead(self, jobs: Sequence[WorkerJob]) -> dict[str, Loss]:
        """Those of the jobs that are no longer alive, and what they died of."""

    @abstractmethod
    def cancel(self, jobs: Sequence[WorkerJob]) -> None:
        """End jobs now."""
