"""The author's contract for a runner: a place where packs of trials run.

One file per runner; its stem is what `--runner` names. Its class is a `Backend`: it declares options and opens the
`Runner` that a driver hands packs to. Where processes are started and ended by another program, such as a cluster's
scheduler, derive it from `JobBackend` (`_queue.py`), whose runner feeds warm workers through a queue of files.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from harness.errors import SpecError, UsageError, one_of
from harness.files import append_line, now, read_lines
from harness.plugins import load, names
from harness.records.causes import Cause
from harness.records.codec import Record, decode
from harness.records.paths import StudyPaths
from harness.records.trial import TrialConfig
from harness.trial.packs import LARGEST
from harness.workers.devices import cores, gpu_bytes, gpu_name, gpus, main_memory_bytes
from harness.workers.worker import Duty

log = logging.getLogger(__name__)


class Pattern(str):
    """A regular expression as text.

    Raises:
        ValueError: When it is none.
    """

    def __new__(cls, text: str) -> Pattern:
        """Take one that `re` understands."""
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(error) from None
        return super().__new__(cls, text)


class Flags(str):
    """Options of a command as on its command line, each `--name` or `--name=value`.

    Raises:
        ValueError: When something else stands there, or one of `reserved`.
    """

    reserved: ClassVar[frozenset[str]] = frozenset()
    """Names that have an option of their own, or that the runner relies on."""

    def __new__(cls, text: str) -> Self:
        """Take what a shell would split into such options."""
        flags = super().__new__(cls, text)
        if not all(re.fullmatch(r"--[a-z][\w-]*(=.*)?", word, re.DOTALL) for word in shlex.split(text)):
            raise ValueError("no flags")
        if taken := cls.reserved & flags.values.keys():
            raise ValueError(f"{taken} are taken")
        return flags

    @property
    def values(self) -> dict[str, str | bool]:
        """By name; True where a flag has no value."""
        pairs = (word.removeprefix("--").partition("=") for word in shlex.split(self))
        return {name: value if equals else True for name, equals, value in pairs}


_KINDS: Mapping[type, tuple[str, str]] = {
    int: ("whole number", "4"),
    float: ("number", "4"),
    str: ("text", "name"),
    Flags: ("list of flags, none of which another option or the runner sets", "'--reservation=class --exclusive'"),
    Pattern: ("regular expression", "'NCCL|Xid'"),
}
"""What the value of an option is called, and an example."""


@dataclass(frozen=True)
class Option:
    """What `--runner-option KEY=VALUE` may set."""

    kind: type[int] | type[float] | type[str]
    """What its value is; of a text also `Pattern` or `Flags`."""
    summary: str
    """One line: what it is, with its unit."""
    default: int | float | str | None = None
    """None: left out unless it is given."""
    minimum: int = 1
    """Of a whole number; other numbers are above 0, or may be 0 where it is 0."""

    def parse(self, key: str, value: str) -> int | float | str:
        """The value as the option's type.

        Args:
            key: Name of the option, for the message of an error.
            value: What the user set, as text.

        Raises:
            UsageError: When it is not a number where one is needed, or too small.
        """
        try:
            parsed = self.kind(value)
        except ValueError:
            rule, example = self._in_words()
            raise UsageError(
                f"runner option {key} must be a {rule}, but got '{value}': for example {key}={example}"
            ) from None
        if isinstance(parsed, int) and parsed < self.minimum:
            raise UsageError(f"runner option {key} must be at least {self.minimum}, but got {value}: raise it")
        if isinstance(parsed, float) and not (parsed > 0 or parsed == self.minimum):
            rule = "above 0" if self.minimum else "at least 0"
            raise UsageError(f"runner option {key} must be {rule}, but got {value}: raise it")
        return parsed

    def _in_words(self) -> tuple[str, str]:
        return next(_KINDS[kind] for kind in self.kind.__mro__ if kind in _KINDS)

    def __str__(self) -> str:
        """For example `whole number: CPU threads of each worker; default 1`."""
        return f"{self._in_words()[0]}: {self.summary}; default {'none' if self.default is None else self.default}"


COMMON: Mapping[str, Option] = {
    "workers": Option(int, "packs that run at a time"),
    "threads": Option(int, "CPU threads of each worker", 1),
    "pack": Option(int, "most trials that go to a worker at once; they train together where they can", LARGEST),
    # Resolving a study's names takes the next phase's driver seconds, on a busy machine tens of them.
    "idle_s": Option(float, "seconds that a worker waits after a phase for the next one to find it warm", 60.0),
    "time_limit_min": Option(float, "minutes after which a trial ends as timed out"),
    "checkpoint_min": Option(
        float, "minutes between two checkpoints in the midst of a trial; 0 for none but those at a signal", minimum=0
    ),
    "outside": Option(Pattern, "a worker that dies with this in its log was lost to its site"),
}
"""Options of every runner; the default of `workers` is the runner's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A runner's options with their types and defaults; see `COMMON` for the meaning of the common ones."""

    workers: int
    threads: int
    pack: int
    idle_s: float
    time_limit_min: float | None = None
    checkpoint_min: float | None = None
    """None: what the environment says, see `harness.trial.workspace.checkpoint_seconds`."""
    outside: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The runner's own options, by name, as it declares them; one without a default is absent unless it was given."""


class Condition(NamedTuple):
    """Whether a runner can be used on this machine."""

    level: Literal["ok", "note", "error"]
    """An error is one that someone has to mend; a note says what is missing."""
    text: str


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
