"""A runner that feeds warm workers through a queue of files, and what a backend must do for it: start and end workers.

A new driver takes over from the one before it. It finds the workers by their lines in `StudyPaths.jobs`, and the packs
that wait or run by their files. It ends workers that were told something else. A local worker of another host cannot be
seen from here and counts as dead.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from harness.errors import HarnessError, one_line
from harness.files import append_line, now, read_lines
from harness.records.causes import Cause
from harness.records.codec import fingerprint, to_json
from harness.records.lost_work import append_lost, lost_attempt
from harness.records.paths import StudyPaths
from harness.records.trial import TrialConfig
from harness.runners.base import Backend, Ended, Foreseen, Loss, Runner, WorkerJob, record_end, recorded_jobs
from harness.workers.worker import Duty, Folders, forget, read_item, where_it_ran, why_it_left, write_item

log = logging.getLogger(__name__)

_TAIL = 300
"""Characters of a worker's log that a reason quotes."""
_CRASH = "Fatal Python error:"
"""What `faulthandler` writes to the log of a process that ends by a fault of its own: in its memory, or by an abort in C or
C++. A traceback says nothing: a Python error ends no worker, and the log may have that of an earlier trial."""
_BAD_NODE = 3
"""Workers in a row that may be lost on a node, none of which had ended a pack, until it gets no more."""
_FALSE_STARTS = 3
"""Workers in a row that may end before they began, until that is an error."""


class JobBackend(Backend, ABC):
    """Starts and ends workers as jobs, which outlive the driver; each runs `serve` with the duty that it is given."""

    job_id_variable: ClassVar[str]
    """Environment variable in which a worker finds the id of its own job."""
    period_s: ClassVar[float]
    """Seconds between questions about jobs."""
    settle_s: ClassVar[float] = 0.0
    """How long a record may take to become visible to the driver after its trial ended."""
    memory_words: ClassVar[str] = r"(?!)"
    """Regular expression of what a scheduler writes into a worker's log that it ends for its memory."""
    job_workers: int = 1
    """Workers of each job."""
    starts_early: ClassVar[bool] = False
    """Whether a worker may be started before it is certain that there is work, since an idle one costs nothing."""

    @abstractmethod
    def start(self, duty: Duty, running: Sequence[WorkerJob]) -> WorkerJob:
        """Submit a job that calls `serve(duty)`.

        Args:
            duty: What the worker is told.
            running: The jobs of other workers, by which a GPU may be chosen.

        Returns:
            The job's id and what else tells it from others; the queue fills in the rest.

        Raises:
            HarnessError: When no job can be started, in the scheduler's words.
        """

    def foresee(self, foreseen: Callable[[], Foreseen]) -> None:
        """Have the jobs to come ask for what trials will take. Nothing where none asks for anything."""

    def lengthen(self) -> None:
        """Ask for more time in the jobs to come: one reached its limit with work in hand. Nothing where none has a limit."""

    def avoid(self, node: str) -> bool:
        """Start no more workers on a node; returns whether that can be had: not where there is only one."""
        return False

    def enlarge(self) -> None:
        """Ask for more memory in the jobs to come: one had too little. Nothing where none has a limit."""

    @abstractmethod
    def dead(self, jobs: Sequence[WorkerJob]) -> dict[str, Loss]:
        """Those of the jobs that are no longer alive, by id, and what they died of."""

    @abstractmethod
    def cancel(self, jobs: Sequence[WorkerJob]) -> None:
        """End jobs now."""

    def open(self, study: StudyPaths, duty: Duty) -> Runner:
        """A runner that takes over the workers and the queue of the driver before it."""
        return QueueRunner(study.jobs, replace(duty, job_id_variable=self.job_id_variable), self)


class QueueRunner(Runner):
    """Feeds warm workers through the queue of a study; `backend` submits them."""

    def __init__(self, lines: Path, duty: Duty, backend: JobBackend) -> None:
        """Take over what an earlier driver of the study left.

        Args:
            lines: `StudyPaths.jobs`.
            duty: What workers are told.
            backend: Starts and ends them.
        """
        self.duty, self.backend, self.settle_s = duty, backend, backend.settle_s
        self.folders, self.lines = Folders(duty.queue), lines
        self.workers = backend.settings.workers
        # Some packs wait in the queue, so that a worker that ends one finds the next before the driver has looked.
        self.slots = self.workers + max(1, self.workers // 4)
        self.folders.make()
        self.folders.rest.unlink(missing_ok=True)
        told = replace(backend.settings, workers=0, pack=0, idle_s=0.0)  # of no matter to a worker that runs already
        self._sign = fingerprint([duty.sign(), vars(told)])
        self._looked_at, self._false_starts = -math.inf, 0
        self._seen_alive: set[str] = set()
        self._killed: Counter[str] = Counter()
        """Workers in a row that each node may have killed before they ended a pack."""
        self.jobs = {job.job: job for job in recorded_jobs(self.lines)}
        self.packs: dict[str, dict[str, TrialConfig]] = {}
        """Trials by key of each pack under way, by the name of its file."""
        self._take_over()

    def submit(self, configs: Sequence[TrialConfig]) -> None:
        """Queue a pack, and start another worker if there are fewer than packs and than allowed."""
        pack = {config.key: config for config in configs}
        name = f"{time.time_ns():020d}-{configs[0].key}.json"
        self.packs[name] = pack
        write_item(self.folders.todo, name, configs)
        self._start_workers()

    def poll(self) -> list[Ended]:
        """Packs that were done, that failed, and those whose worker died; asks after workers every few seconds."""
        dead = self._dead_workers() if time.monotonic() - self._looked_at > self.backend.period_s else {}
        ended = [self._end_pack(name, None) for name in self._under_way_in(self.folders.done)]
        ended += [self._end_pack(name, self._reason(name)) for name in self._under_way_in(self.folders.failed)]
        if any(pack.loss and pack.loss.cause == Cause.HOST_MEMORY for pack in ended):  # of a worker whose job goes on
            self.backend.enlarge()
        for job, loss in dead.items():
            ended += [self._lose_pack(job, path, loss) for path in self._held_by(job) if path.name in self.packs]
            self._blame_node(job, loss)
            forget(self.folders.claimed / job)
        self._start_workers()
        return ended

    def _blame_node(self, job: str, loss: Loss) -> None:
        """Count a worker that its node may have killed; a node that has killed several in a row gets no more of them."""
        node, ended = where_it_ran(self.folders.claimed / job)
        if not node or not loss.cause.policy.node:
            return
        self._killed[node] = 1 if ended else self._killed[node] + 1
        if self._killed[node] == _BAD_NODE and self.backend.avoid(node):
            reason = f"{_BAD_NODE} workers in a row were lost there, the last since {loss.cause.policy.what}"
            log.warning("node %s gets no more workers until the command is typed again: %s", node, reason)
            append_line(self.lines, {"event": "excluded", "node": node, "reason": reason, "at": now()})

    def under_way(self) -> Sequence[Collection[str]]:
        """Keys of the trials of each pack in the queue."""
        return list(self.packs.values())

    def leave(self) -> None:
        """Keep the workers that have started, who leave by themselves when idle; end what nobody waits for."""
        if self.packs:
            self.close()
            return
        not_begun = [job for job in self.jobs.values() if not (self.folders.claimed / job.job).exists()]
        self._end_workers(not_begun, "stopped by the driver before it began")
        self.folders.rest.touch()

    def close(self) -> None:
        """End all workers and empty the queue; the next driver asks again for what was not finished."""
        self._end_workers(list(self.jobs.values()), "stopped by the driver")
        for path in [*self.folders.todo.iterdir(), *self.folders.claimed.rglob("*")]:
            if not path.is_dir():
                path.unlink(missing_ok=True)
        self.packs.clear()

    def _end_workers(self, jobs: Sequence[WorkerJob], reason: str) -> None:
        """End workers now; the time of what they had begun is written down as lost, and the packs wait again."""
        self.backend.cancel(jobs)
        for job in jobs:
            for path in self._held_by(job.job):
                with suppress(FileNotFoundError):  # the pack had ended after all
                    held = self._held_s(job.job, path)
                    os.rename(path, self.folders.todo / path.name)
                    configs = read_item(self.folders.todo / path.name)
                    lost = lost_attempt(self.duty.workspace.paths, configs, held, Cause.CANCELLED, reason)
                    append_lost(self.lines, lost)
            self._forget(job.job, reason)

    def _take_over(self) -> None:
        """Keep an earlier driver's workers where they fit, and its packs that wait or run.

        What ended while no driver looked has a record, or runs again; so files of ended packs are removed.
        """
        for folder in (self.folders.done, self.folders.failed):
            for path in folder.iterdir():
                path.unlink()
        fit = [job for job in self.jobs.values() if job.duty == self._sign]
        fit.sort(key=lambda job: -len(self._held_by(job.job)))
        unfit = [job for job in self.jobs.values() if job not in fit[: self._jobs_for(self.workers)]]
        self._end_workers(unfit, "unfit for what is to be done")
        for path in (*_packs_in(self.folders.todo), *_packs_in(self.folders.claimed)):
            self.packs[path.name] = {config.key: config for config in read_item(path)}
        if self.packs:
            log.info("%d packs of an earlier driver are still under way", len(self.packs))

    def foresee(self, foreseen: Callable[[], Foreseen]) -> None:
        """Tell the backend, before the first job is submitted."""
        self.backend.foresee(foreseen)

    def expect(self, packs: int) -> None:
        """Start workers for packs to come, where an idle one costs nothing."""
        if self.backend.starts_early:
            self._start_workers(packs)

    def _start_workers(self, expected: int = 0) -> None:
        """Start workers until there are as many as packs, expected ones included, or as are allowed."""
        while len(self.jobs) < self._jobs_for(min(self.workers, max(expected, len(self.packs)))):
            job = replace(
                self.backend.start(self.duty, list(self.jobs.values())),
                runner=self.backend.name(),
                host=socket.gethostname(),
                at=now(),
                duty=self._sign,
            )
            self.jobs[job.job] = job
            append_line(self.lines, {"event": "started", "job": to_json(job)})

    def _jobs_for(self, workers: int) -> int:
        """Jobs that have so many workers."""
        return math.ceil(workers / self.backend.job_workers)

    def _dead_workers(self) -> dict[str, Loss]:
        """Ids of the workers that died since the last call, and of unknown ones that hold packs, with the reason."""
        self._looked_at = time.monotonic()
        dead = {job: self._explained(job, loss) for job, loss in self.backend.dead(list(self.jobs.values())).items()}
        self._seen_alive |= self.jobs.keys() - dead.keys()
        if any(loss.cause == Cause.JOB_TIME and self._held_by(job) for job, loss in dead.items()):
            self.backend.lengthen()
        if any(loss.cause == Cause.HOST_MEMORY and self._held_by(job) for job, loss in dead.items()):
            self.backend.enlarge()
        for job, loss in dead.items():
            self._forget(job, loss.reason if self._held_by(job) else "left, or died, with nothing to do")
            self._count_false_start(job)
        unknown = {path.name for path in self.folders.claimed.iterdir()} - set(self.jobs) - set(dead)
        return dead | dict.fromkeys(unknown, Loss(Cause.UNSEEN, "its worker died unseen"))

    def _explained(self, job: str, loss: Loss) -> Loss:
        """A worker's death in view of what it wrote before: why it left, that it crashed, or a fault of the site."""
        log = self._log_tail(job)
        if (site := self.backend.settings.outside) and re.search(site, log):
            return replace(loss, cause=Cause.SITE, reason=f"{loss.reason} ({log[-_TAIL:]})")
        if loss.cause != Cause.KILLED:
            return loss
        if re.search(self.backend.memory_words, log):
            return replace(loss, cause=Cause.HOST_MEMORY, reason=f"{loss.reason}: out of memory")
        if (cause := why_it_left(self.folders.claimed / job)) is not None:
            return replace(loss, cause=cause)
        if (crash := log.rfind(_CRASH)) >= 0:
            return replace(loss, cause=Cause.DIED, reason=f"{loss.reason} ({log[crash:][:_TAIL]})")
        return loss

    def _log_tail(self, job: str) -> str:
        """The end of what a worker, of this driver or an earlier one, wrote to its standard error, on one line."""
        path = max(self.backend.folder.parent.glob(f"*/{job}_0_log.err"), key=_modified, default=None)
        if path is None:
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 10_000))
            return one_line(file.read().decode(errors="replace"), 10_000)

    def _forget(self, job: str, reason: str) -> None:
        del self.jobs[job]
        record_end(self.lines, job, reason)

    def _count_false_start(self, job: str) -> None:
        """Raise `HarnessError` once several workers in a row ended before they made their folder, as each does first."""
        self._false_starts = 0 if (self.folders.claimed / job).exists() else self._false_starts + 1
        if self._false_starts >= _FALSE_STARTS:
            tail = self._log_tail(job)[-_TAIL:] or "it left no log"
            raise HarnessError(
                f"a worker must be able to start, but {_FALSE_STARTS} in a row ended at once ({tail}): see "
                f"{self.backend.folder}"
            )

    def _lose_pack(self, job: str, claimed: Path, loss: Loss) -> Ended:
        """Take a pack away from its dead worker."""
        try:
            held = self._held_s(job, claimed)
            claimed.unlink()
        except FileNotFoundError:  # the worker had finished it before it died
            return self._end_pack(claimed.name, None)
        return self._end_pack(claimed.name, replace(loss, seconds=held))

    def _held_by(self, job: str) -> list[Path]:
        return _packs_in(self.folders.claimed / job)

    def _held_s(self, job: str, claimed: Path) -> float:
        """Seconds since a pack was claimed, or until its worker's last sign of life if it was dead when first looked at."""
        until = time.time()
        if job not in self._seen_alive:
            # It may have died long before this driver began; the time between belongs to no trial.
            logs = self.backend.folder.parent.glob(f"*/{job}_*")
            until = max((path.stat().st_mtime for path in logs), default=0.0)
        return max(0.0, until - claimed.stat().st_ctime)  # a rename sets ctime: the moment of the claim

    def _end_pack(self, name: str, loss: Loss | None) -> Ended:
        for folder in (self.folders.done, self.folders.failed):
            for leftover in (folder / name, folder / f"{name}.why"):
                leftover.unlink(missing_ok=True)
        return Ended(tuple(self.packs.pop(name).values()), loss)

    def _reason(self, name: str) -> Loss:
        """Why a pack failed, as its worker wrote it down."""
        lines = read_lines(self.folders.failed / f"{name}.why")
        if not lines:  # the worker could rename the pack's file, but not write another: its disk is full
            return Loss(Cause.STORAGE, "nothing could be written")
        return Loss(Cause(lines[0]["cause"]), lines[0]["reason"], lines[0]["seconds"])

    def _under_way_in(self, folder: Path) -> list[str]:
        """Files in a folder of packs that this driver waits for."""
        return [path.name for path in _packs_in(folder) if path.name in self.packs]


def _packs_in(folder: Path) -> list[Path]:
    """Files of packs in a folder and below, by name; one with a dot before its name is still being written."""
    paths = (Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(
        (path for path in paths if path.suffix == ".json" and path.name[0] != "."), key=lambda path: path.name
    )


def _modified(path: Path) -> float:
    return path.stat().st_mtime
