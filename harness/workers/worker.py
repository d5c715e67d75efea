"""A warm worker: one process that takes packs of trials from a queue of files until there are none left.

    queue/todo/ITEM        written by the driver
    queue/claimed/JOB/ITEM taken by the worker whose job is JOB; a rename, so only one can have it
    queue/done/ITEM        its trials have records
    queue/failed/ITEM      the pack raised an error; ITEM.why says which

Imports, base weights and tokenised data are paid for once per worker. It stays for a while when a phase has ended, so
that the next phase finds it warm. There is no heartbeat: the driver asks the operating system or the scheduler which
jobs are alive, and has what a dead worker had claimed run again.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING

from harness.errors import SpecError, StorageError, one_line
from harness.files import parse_json, write_atomically
from harness.plugins import project_root, use_project
from harness.records.causes import Cause
from harness.records.codec import canonical_json, decode, fingerprint, to_json
from harness.records.trial import TrialConfig, TrialResult
from harness.training import leaving

if TYPE_CHECKING:
    from harness.trial.workspace import Workspace

log = logging.getLogger(__name__)

Work = Callable[[Sequence[TrialConfig]], list[TrialResult]]
"""Runs a pack and leaves one record per trial; raises only for what is not a trial's own failure."""

_VARIABLES_THAT_MATTER = (
    "HARNESS_",
    "HF_",
    "CUDA_",
    "OMP_",
    "MKL_",
    "TORCH",
    "PYTORCH_",
    "PYTHON",
    "TOKENIZERS_",
    "TRANSFORMERS_",
    "LD_",
)
"""First parts of the names of environment variables that can change what a worker does."""
TOLD_TO_LEAVE = MappingProxyType(
    {signal.SIGUSR2: Cause.JOB_TIME, signal.SIGTERM: Cause.CANCELLED, signal.SIGINT: Cause.CANCELLED}
)
"""What each signal tells a worker: submitit has Slurm send SIGUSR2 before a job's time limit."""
_LEFT = ".left"
"""File in a worker's folder that says why it left before it was done."""
_NODE = ".node"
"""File in a worker's folder with the name of its node, and then a line for each pack that ended there."""
_POLL_S = 0.05
_LONGEST_POLL_S = 1.0
"""A worker without work looks into the queue after `_POLL_S`, and the longer it waits the more rarely, up to this."""
_PATIENCE = 5
"""Factor of `idle_s` during a phase: others may still run, and what follows may depend on their results."""


@dataclass(frozen=True)
class Folders:
    """The queue's folders."""

    root: Path

    @property
    def todo(self) -> Path:
        """Packs that wait."""
        return self.root / "todo"

    @property
    def claimed(self) -> Path:
        """A folder for each worker, named by its job, with the packs that it runs."""
        return self.root / "claimed"

    @property
    def done(self) -> Path:
        """Packs that ran."""
        return self.root / "done"

    @property
    def failed(self) -> Path:
        """Packs whose run raised an error."""
        return self.root / "failed"

    @property
    def rest(self) -> Path:
        """A file that is there from the end of a phase to the beginning of the next: workers may leave."""
        return self.root / "rest"

    def make(self) -> None:
        """Create them."""
        for folder in (self.todo, self.claimed, self.done, self.failed):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Duty:
    """What a worker is told when its job is submitted."""

    queue: Path
    work: str
    """`module:function`, called with the workspace when a worker starts; it gives what runs its packs, see `Work`."""
    workspace: Workspace
    idle_s: float = 60.0
    """It leaves when it had nothing to do for so long after a phase; during a phase it waits five times as long."""
    limit_s: float | None = None
    """Wall seconds of its job: it takes nothing more when what remains is less than its longest pack took."""
    workers: int = 1
    """Workers of its job, each on a GPU of its own; see `workers.job`."""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Variables set before the first import of torch."""
    job_id_variable: str = ""
    """Environment variable that holds the id of the worker's own job."""
    project: Path | None = field(default_factory=project_root)
    """Folder whose plug-ins it finds beside the package's own: that of the process which starts it."""

    def sign(self) -> str:
        """Fingerprint of what makes a worker fit for this duty: the code, what it is told, and its environment.

        GPU, time limit and patience differ from worker to worker of one duty, so they are left out.
        """
        # Modification times rather than contents: this runs as each phase starts, over some 350 files.
        homes = [Path(__file__).parents[1], *([self.project / "plugins"] if self.project else [])]
        code = [[str(path), path.stat().st_mtime_ns] for home in homes for path in sorted(home.rglob("*.py"))]
        around = {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES_THAT_MATTER)}
        return fingerprint([code, str(self.queue), self.work, repr(self.workspace), around])


def start_work(duty: Duty) -> Work:
    """Call the duty's `work`: what it returns runs the packs of this process, and holds what one leaves for the next."""
    module, _, function = duty.work.partition(":")
    work: Work = getattr(importlib.import_module(module), function)(duty.workspace)
    return work


def write_item(folder: Path, name: str, configs: Sequence[TrialConfig]) -> None:
    """Put a pack into a folder of the queue.

    Args:
        folder: One of `Folders`.
        name: Of its file; packs are taken in the order of their names.
        configs: The trials of the pack.
    """
    write_atomically(folder / name, canonical_json([to_json(config) for config in configs]))


def read_item(path: Path) -> list[TrialConfig]:
    """The trials of a pack."""
    return [decode(TrialConfig, data) for data in parse_json(path.read_text())]


def held_trials(folders: Folders) -> set[str]:
    """Keys of the trials that workers hold; what they end or take meanwhile may be missed."""
    keys: set[str] = set()
    for path in folders.claimed.rglob("*.json"):
        with suppress(OSError, ValueError):
            keys.update(config.key for config in read_item(path))
    return keys


def serve(duty: Duty, place: str = "") -> int:
    """A worker's life, from the start of its job to its end.

    Args:
        duty: What it is told.
        place: Name of the folder for what it claims, below its job's, where it is one of several of the job.

    Returns:
        How many packs it ran.
    """
    os.environ.update(duty.environment)
    if duty.project:
        use_project(duty.project)
    die_with_parent()
    faulthandler.enable()  # its log then says so when it crashes, which tells a crash from a kill
    folders = Folders(duty.queue)
    mine = folders.claimed / os.environ[duty.job_id_variable]
    held = mine / place
    held.mkdir(parents=True, exist_ok=True)
    _sign(mine, os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    for number in TOLD_TO_LEAVE:
        signal.signal(number, partial(_leave, mine))
    work = start_work(duty)
    count = 0
    for item in _claims(folders, held, duty):
        _run(item, folders, work)
        _sign(mine, item.name)
        count += 1
    return count


def _sign(mine: Path, line: str) -> None:
    with suppress(OSError), (mine / _NODE).open("a") as file:  # a full disk is no reason not to work
        file.write(f"{line}\n")


def where_it_ran(mine: Path) -> tuple[str, int]:
    """The node of a worker, and how many packs have ended there; no name where it could not write it.

    Args:
        mine: Its folder in `Folders.claimed`.
    """
    try:
        node, *ended = (mine / _NODE).read_text().splitlines() or [""]
    except OSError:
        return "", 0
    return node, len(ended)


def _leave(mine: Path, number: int, frame: FrameType | None) -> None:
    """Leave, at once or when what trains is saved.

    submitit would ignore SIGTERM and requeue on SIGUSR2, but the driver decides what runs again.
    """
    with suppress(OSError):  # the disk may be full; then the scheduler's word is all that there is
        (mine / _LEFT).write_text(TOLD_TO_LEAVE[signal.Signals(number)])
    leaving.ask(number)


def why_it_left(mine: Path) -> Cause | None:
    """What a worker that has ended was told to leave for; None where nobody told it.

    Args:
        mine: Its folder in `Folders.claimed`.
    """
    try:
        return Cause((mine / _LEFT).read_text())
    except (OSError, ValueError):
        return None


def forget(mine: Path) -> None:
    """Remove a dead worker's folder; one that holds a pack which nobody asked for stays."""
    for name in (_LEFT, _NODE):
        (mine / name).unlink(missing_ok=True)
    with suppress(OSError):
        for place in (*mine.iterdir(), mine):
            place.rmdir()


def die_with_parent() -> None:
    """Have the kernel kill this process when whoever started it dies: otherwise it would train on beside its successor.

    Linux only (prctl, PR_SET_PDEATHSIG); elsewhere the worker notices between two packs.
    """
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel knew
        raise SystemExit(1)


def _claims(folders: Folders, mine: Path, duty: Duty) -> Iterator[Path]:
    """Claim packs until there were none for too long, time is short, or the controller that started this worker is dead."""
    # An orphan gets another parent; without this check it would go on beside the worker that took its place.
    parent, started = os.getppid(), time.monotonic()
    idle_since, longest, resting = started, 0.0, False
    while os.getppid() == parent and folders.todo.exists():
        now = time.monotonic()
        # A pack may take a fifth longer than the longest so far; one that is cut off by the limit is lost work.
        if duty.limit_s is not None and now - started + 1.2 * longest > duty.limit_s:
            return
        item = _claim(folders.todo, mine)
        if item is not None:
            yield item
            idle_since = time.monotonic()
            longest = max(longest, idle_since - now)
            continue
        if folders.rest.exists() is not resting:
            resting, idle_since = not resting, now
        if now - idle_since > duty.idle_s * (1 if resting else _PATIENCE):
            return
        time.sleep(min(_LONGEST_POLL_S, max(_POLL_S, (now - idle_since) / 20)))


def _claim(todo: Path, mine: Path) -> Path | None:
    """Take the first pack that waits: renaming its file is atomic, so that only one worker can have it."""
    for name in sorted(name for name in os.listdir(todo) if not name.startswith(".")):
        with suppress(FileNotFoundError):  # another worker was quicker
            os.rename(todo / name, mine / name)
            return mine / name
    return None


def _run(item: Path, folders: Folders, work: Work) -> None:
    """Run a pack and move its file to `done`, or to `failed` with the reason beside it."""
    started = time.monotonic()
    try:
        work(read_item(item))
    except Exception as error:
        log.exception("%s failed", item.name)
        fail(item, folders, *_why(error), time.monotonic() - started)
    else:
        os.rename(item, folders.done / item.name)


def fail(item: Path, folders: Folders, cause: Cause, reason: str, seconds: float) -> None:
    """Move a pack's file to `failed`, with the reason beside it.

    Args:
        item: Where it was claimed.
        folders: The queue.
        cause: What ended it.
        reason: The same in words.
        seconds: Wall seconds that it held its worker.
    """
    why = {"cause": cause, "reason": reason, "seconds": seconds}
    with suppress(StorageError):  # a full disk takes a rename, but not always a file
        write_atomically(folders.failed / f"{item.name}.why", json.dumps(why) + "\n")
    os.rename(item, folders.failed / item.name)


def _why(error: Exception) -> tuple[Cause, str]:
    known = {SpecError: Cause.SPEC, StorageError: Cause.STORAGE}
    cause = next((cause for base, cause in known.items() if isinstance(error, base)), Cause.RAISED)
    text = one_line(str(error), 500)
    return cause, text if cause != Cause.RAISED else f"{type(error).__name__}: {text}"
