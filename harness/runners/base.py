"""The author's contract for a runner: a place where packs of trials run.

One file per runner; its stem is what `--runner` names. Its class is a `Backend`: it declares options and opens the
`Runner` that a driver hands packs to. Where processes are started and ended by another program, such as a cluster's
scheduler, derive it from `JobBackend` (`_queue.py`), whose runner feeds warm workers through a queue of files.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from harness.errors import SpecError, UsageError, one_of
from harness.files import append_line, now, read_lines
from harness.plugins import load, names
from harness.records.causes import Cause
from harness.records.codec import Record, decode
from harness.records.paths import StudyPaths
from harness.records.trial import TrialConfig
from harness.runners._options import COMMON, Option, Settings
from harness.workers.devices import cores, gpu_bytes, gpu_name, gpus, main_memory_bytes
from harness.workers.worker import Duty

log = logging.getLogger(__name__)


class Condition(NamedTuple):
    """Whether a runner can be used on this machine."""

    level: Literal["ok", "note", "error"]
    """An error is one that someone has to mend; a note says what is missing."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What the trials of a study are expected to take of a worker, with a margin for what no forecast can know."""

    memory_bytes: float | None
    """Main memory; None where it is not known."""
    pack_s: float
    """Wall seconds of the longest pack."""
    worker_s: float
    """Wall seconds of all packs of a worker, where the workers share them equally."""


class Backend(ABC):
    """What a runner's file declares, and how it is opened for a study."""

    summary: ClassVar[str]
    """One line: where it runs trials."""
    options: ClassVar[Mapping[str, Option]] = {}
    """Its own, beside `COMMON`."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        """Take what it is opened with.

        Args:
            folder: For logs and whatever else belongs to its jobs; on a file system that its workers share.
            settings: From `parse_options`.
        """
        self.folder, self.settings = folder, settings

    @classmethod
    def name(cls) -> str:
        """What `--runner` calls it: the stem of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def all_options(cls) -> dict[str, Option]:
        """Its own options and the common ones."""
        workers = replace(COMMON["workers"], default=cls.default_workers())
        return {**COMMON, "workers": workers, **cls.options}

    @classmethod
    def default_workers(cls) -> int:
        """Packs that run at a time unless told otherwise; by default one on each GPU, or on each core."""
        return len(gpus()) or cores()

    @classmethod
    def workers(cls, settings: Settings) -> int:
        """Packs that run at a time with these settings."""
        return settings.workers

    @classmethod
    def device(cls, settings: Settings) -> Literal["cpu", "cuda"]:
        """What trials will run on; by default this machine's GPU if there is one."""
        return "cuda" if gpus() else "cpu"

    @classmethod
    def gpu_name(cls) -> str | None:
        """Name of the GPU that trials will run on; None where that is not known before they do."""
        return gpu_name()

    @classmethod
    def memory(cls, settings: Settings) -> int | None:
        """Bytes that the device of a trial has: of this machine, a GPU's or its main memory; None where nobody says."""
        return gpu_bytes() if cls.device(settings) == "cuda" else main_memory_bytes()

    @abstractmethod
    def open(self, study: StudyPaths, duty: Duty) -> Runner:
        """The runner of a study.

        Args:
            study: The study's files.
            duty: What workers are told.
        """

    @classmethod
    def examine(cls) -> Condition | None:
        """What `harness doctor` says of it on this machine; None where there is nothing to look at."""
        return None

    def jobs_on(self, node: str) -> Collection[str]:
        """Ids of all jobs on a node, whoever's they are; none where a runner knows no nodes."""
        return ()

    def set_node(self, node: str, up: bool) -> str:
        """Take a node down, with all that runs on it, or up again; returns why that cannot be had, or nothing."""
        return "this runner knows no nodes"

    def cancel(self, jobs: Sequence[WorkerJob]) -> None:  # noqa: B027
        """End jobs that an earlier driver started; nothing where trials run in the driver's own process."""


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

    def foresee(self, foreseen: Callable[[], Foreseen]) -> None:  # noqa: B027
        """What trials will take, for a runner that asks somebody for it; finding out takes seconds, so only then."""

    def expect(self, packs: int) -> None:  # noqa: B027
        """So many packs will come soon: workers that cost nothing to have may start and import what they need."""

    def close(self) -> None:  # noqa: B027
        """Stop all workers, whatever they do."""


@dataclass(frozen=True)
class Loss:
    """Why a pack did not run to its end."""

    cause: Cause
    reason: str
    """The same in words: what the scheduler said, or the end of the worker's log."""
    seconds: float = 0.0
    """Wall seconds that it held its worker; those of the last sign of life where nobody saw the worker die."""


@dataclass(frozen=True)
class Ended:
    """A pack that is no longer under way."""

    configs: tuple[TrialConfig, ...]
    loss: Loss | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerJob(Record):
    """A worker's job, as its line in `StudyPaths.jobs` has it."""

    job: str
    """Process id of its controller, or what the cluster calls it."""
    birth: str = ""
    """Start time of the process in clock ticks since boot: tells it from a later one with the same id."""
    gpu: str = ""
    runner: str = ""
    """The runner that started it; this and what follows is filled in by the runner's queue."""
    host: str = ""
    at: str = ""
    duty: str = ""
    """Fingerprint of what it was told, see `Duty.sign`."""


def recorded_jobs(lines: Path) -> list[WorkerJob]:
    """The workers that `StudyPaths.jobs` does not say the end of; the ids of processes come back, so order counts."""
    jobs: dict[str, WorkerJob] = {}
    for line in read_lines(lines):
        if line["event"] == "started":
            jobs[line["job"]["job"]] = decode(WorkerJob, line["job"])
        elif line["event"] == "ended":
            jobs.pop(line["job"], None)
    return list(jobs.values())


def record_end(lines: Path, job: str, reason: str) -> None:
    """Write down that a worker has ended.

    Args:
        lines: `StudyPaths.jobs`.
        job: Id of its job.
        reason: Why, in a few words.
    """
    append_line(lines, {"event": "ended", "job": job, "reason": reason, "at": now()})


def backend(runner: str) -> type[Backend]:
    """The plug-in that `--runner` names.

    Raises:
        UsageError: When there is none of that name.
        SpecError: When its file is broken.
    """
    if runner not in names("runners"):
        raise UsageError(one_of("runner", runner, list(names("runners"))))
    plugin: type[Backend] = load("runners", runner)
    return plugin


def parse_options(runner: str, given: Mapping[str, str]) -> Settings:
    """A runner's options with their types and defaults.

    Args:
        runner: Its name.
        given: What the user set, as text.

    Raises:
        UsageError: For an unknown runner or option, or a value that is not a number where one is needed.
    """
    known = backend(runner).all_options()
    for key in given:
        if key not in known:
            raise UsageError(one_of(f"option of runner {runner}", key, list(known)))
    defaults = {key: option.default for key, option in known.items() if option.default is not None}
    parsed: dict[str, Any] = defaults | {key: known[key].parse(key, given[key]) for key in given}
    own = {key: value for key, value in parsed.items() if key not in COMMON}
    return Settings(**{key: value for key, value in parsed.items() if key in COMMON}, own=own)


def make_runner(runner: str, settings: Settings, study: StudyPaths, duty: Duty) -> Runner:
    """The runner of a study, opened; workers that an earlier driver started with another runner are ended.

    Args:
        runner: Its name.
        settings: From `parse_options`.
        study: The study's files, on a file system that the workers share.
        duty: What workers do.
    """
    study.logs.mkdir(parents=True, exist_ok=True)
    study.logs.chmod(0o700)  # submitit's pickles hold what workers are told
    own = study.logs / f"{time.time_ns()}"  # process ids come back; what submitit keeps by id must not
    for other in sorted({job.runner for job in recorded_jobs(study.jobs)} - {runner}):
        _retire(other, own, study)
    return backend(runner)(own, settings).open(study, duty)


def _retire(runner: str, folder: Path, study: StudyPaths) -> None:
    """End the workers that an earlier driver started with another runner, lest a trial run in both."""
    jobs = [job for job in recorded_jobs(study.jobs) if job.runner == runner]
    try:
        backend(runner)(folder, parse_options(runner, {})).cancel(jobs)
    except (SpecError, UsageError) as error:  # a plug-in that is broken or gone
        log.warning("%d workers of runner %s could not be ended: %s", len(jobs), runner, error)
    for job in jobs:
        record_end(study.jobs, job.job, "another runner took over")
