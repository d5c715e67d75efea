"""A runner that feeds warm workers through a queue of files, and what a backend must be able to do to start them.

A driver finds the workers of the one before it by their lines in `jobs.jsonl`, and the packs of one that was killed by
their files. Workers that were told something else are ended first. A local worker of another host cannot be seen from
here and counts as dead.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from harness.errors import HarnessError
from harness.files import append_line, now, read_lines
from harness.records.lost_work import append_lost, lost_attempt
from harness.records.paths import StudyPaths
from harness.records.trial import TrialConfig, TrialStatus, fingerprint
from harness.runners.base import Backend, Ended, Loss, Runner, WorkerJob, record_end, recorded_jobs
from harness.workers.worker import Duty, Folders, read_item, write_item

log = logging.getLogger(__name__)

_START_ATTEMPTS = 3
_DRIVERS_OWN = ("workers", "pack", "idle_s")
"""Options that workers know nothing of."""


class JobBackend(Backend, ABC):
    """Starts and ends workers as jobs, which outlive the driver; each runs `serve` with the duty that it is given."""

    job_id_variable: ClassVar[str]
    """Environment variable in which a worker finds the id of its own job."""
    period_s: ClassVar[float]
    """Seconds between questions about jobs."""
    settle_s: ClassVar[float] = 0.0
    """How long a record may take to become visible to the driver after its trial ended."""
    starts_early: ClassVar[bool] = False
    """Whether a worker may be started before it is certain that there is work, since an idle one costs nothing."""

    @abstractmethod
    def start(self, duty: Duty, running: Sequence[WorkerJob]) -> WorkerJob:
        """Submit a job that calls `serve(duty)`.

        Args:
            duty: What the worker is told.
            running: The jobs of other workers, by which a GPU may be chosen.
        """

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
        self.workers = backend.settings["workers"]
        self.slots = self.workers + max(1, self.workers // 4)
        self.folders.make()
        self.folders.rest.unlink(missing_ok=True)
        told = {key: value for key, value in backend.settings.items() if key not in _DRIVERS_OWN}
        self._sign = fingerprint([duty.sign(), told])
        self._last_look, self._false_starts = -1e9, 0
        self._seen: set[str] = set()
        self.jobs = {job.job: job for job in recorded_jobs(self.lines)}
        self.items: dict[str, dict[str, TrialConfig]] = {}
        self._adopt()

    def submit(self, configs: Sequence[TrialConfig]) -> None:
        """Queue a pack, and start another worker if there are fewer than packs and than allowed."""
        pack = {config.key: config for config in configs}
        name = f"{time.time_ns():020d}-{configs[0].key}.json"
        self.items[name] = pack
        write_item(self.folders.todo, name, configs)
        self._staff()

    def poll(self) -> list[Ended]:
        """Packs that were done, that failed, and those whose worker died; looks at workers every few seconds."""
        lost = self._look() if time.monotonic() - self._last_look > self.backend.period_s else {}
        ended = [self._finish(name, None) for name in self._in(self.folders.done)]
        ended += [self._finish(name, self._why(name)) for name in self._in(self.folders.failed)]
        for job, loss in lost.items():
            ended += [self._lose(job, name, loss) for name in self._in(self.folders.claimed / job)]
            with suppress(OSError):  # absent, or with a pack that nobody asked for
                (self.folders.claimed / job).rmdir()
        self._staff()
        return ended

    def under_way(self) -> Sequence[Collection[str]]:
        """Keys of the trials of each pack in the queue."""
        return list(self.items.values())

    def leave(self) -> None:
        """Keep the workers that have started, who leave by themselves when idle; end what nobody waits for."""
        if self.items:
            self.close()
            return
        waiting = [job for job in self.jobs.values() if not (self.folders.claimed / job.job).exists()]
        self._end(waiting, "stopped by the driver before it began")
        self.folders.rest.touch()

    def close(self) -> None:
        """End all workers; what they had not finished is forgotten here and asked for again by the next driver."""
        self._end(list(self.jobs.values()), "stopped by the driver")
        for path in [*self.folders.todo.iterdir(), *self.folders.claimed.glob("*/*")]:
            path.unlink(missing_ok=True)
        self.items.clear()

    def _end(self, jobs: Sequence[WorkerJob], reason: str) -> None:
        """End workers now; what they had begun is written down as lost and waits again."""
        self.backend.cancel(jobs)
        for job in jobs:
            for path in self._held_by(job.job):
                with suppress(FileNotFoundError):  # it had ended after all
                    held = self._held_s(job.job, path)
                    os.rename(path, self.folders.todo / path.name)
                    configs = read_item(self.folders.todo / path.name)
                    append_lost(self.lines, lost_attempt(self.duty.workspace.paths, configs, held, reason))
            self._bury(job.job, reason)

    def _adopt(self) -> None:
        """Take over from an earlier driver: fit workers, what waits and what runs; what a dead one held is reported."""
        for folder in (self.folders.done, self.folders.failed):
            for path in folder.iterdir():
                path.unlink()
        fit = [job for job in self.jobs.values() if job.duty == self._sign]
        fit.sort(key=lambda job: -len(self._held_by(job.job)))
        self._end([job for job in self.jobs.values() if job not in fit[: self.workers]], "unfit for what is to be done")
        for folder in (self.folders.todo, *self.folders.claimed.iterdir()):
            for name in self._present(folder):
                self.items[name] = {config.key: config for config in read_item(folder / name)}
        if self.items:
            log.info("%d packs of an earlier driver are still under way", len(self.items))

    def expect(self, packs: int) -> None:
        """Start workers for packs to come, where an idle one costs nothing."""
        if self.backend.starts_early:
            self._staff(packs)

    def _staff(self, packs: int = 0) -> None:
        while len(self.jobs) < min(self.workers, max(packs, len(self.items))):
            job = replace(
                self.backend.start(self.duty, list(self.jobs.values())),
                runner=self.backend.name(),
                host=socket.gethostname(),
                at=now(),
                duty=self._sign,
            )
            self.jobs[job.job] = job
            append_line(self.lines, {"event": "started", "job": vars(job)})

    def _look(self) -> dict[str, Loss]:
        """The workers that died since the last look, orphans of workers that are unknown among them."""
        self._last_look = time.monotonic()
        dead = self.backend.dead(list(self.jobs.values()))
        self._seen |= self.jobs.keys() - dead.keys()
        for job, loss in dead.items():
            self._bury(job, loss.reason if self._held_by(job) else "left, or died, with nothing to do")
            self._count_false_start(job)
        unknown = {path.name for path in self.folders.claimed.iterdir()} - set(self.jobs) - set(dead)
        return dead | dict.fromkeys(unknown, Loss("worker", TrialStatus.CRASHED, "its worker died unseen"))

    def _bury(self, job: str, reason: str) -> None:
        del self.jobs[job]
        record_end(self.lines, job, reason)

    def _count_false_start(self, job: str) -> None:
        """A worker makes its folder as it starts; several in a row that could not are not bad luck."""
        self._false_starts = 0 if (self.folders.claimed / job).exists() else self._false_starts + 1
        if self._false_starts >= _START_ATTEMPTS:
            path = self.backend.folder / f"{job}_0_log.err"
            tail = " ".join(path.read_text().split())[-300:] if path.exists() else "it left no log"
            raise HarnessError(
                f"a worker must be able to start, but {_START_ATTEMPTS} in a row ended at once ({tail}): see {path.parent}"
            )

    def _lose(self, job: str, name: str, loss: Loss) -> Ended:
        claimed = self.folders.claimed / job / name
        try:
            held = self._held_s(job, claimed)
            claimed.unlink()
        except FileNotFoundError:  # it had ended after all
            return self._finish(name, None)
        return self._finish(name, replace(loss, seconds=held))

    def _held_by(self, job: str) -> list[Path]:
        folder = self.folders.claimed / job
        return [folder / name for name in self._present(folder)]

    def _held_s(self, job: str, claimed: Path) -> float:
        """Seconds since a pack was claimed, or until its worker's last sign of life if it was dead when first looked at."""
        until = time.time()
        if job not in self._seen:
            logs = self.backend.folder.parent.glob(f"*/{job}_*")
            until = max((path.stat().st_mtime for path in logs), default=0.0)
        return max(0.0, until - claimed.stat().st_ctime)  # a rename sets ctime: the moment of the claim

    def _finish(self, name: str, loss: Loss | None) -> Ended:
        for folder in (self.folders.done, self.folders.failed):
            for leftover in (folder / name, folder / f"{name}.why"):
                leftover.unlink(missing_ok=True)
        return Ended(tuple(self.items.pop(name).values()), loss)

    def _why(self, name: str) -> Loss:
        why = self.folders.failed / f"{name}.why"
        lines = read_lines(why)
        if not lines:
            return Loss("storage", TrialStatus.CRASHED, "nothing could be written")
        return Loss(lines[0]["kind"], TrialStatus.CRASHED, lines[0]["reason"], lines[0]["seconds"])

    def _in(self, folder: Path) -> list[str]:
        return [name for name in self._present(folder) if name in self.items]

    def _present(self, folder: Path) -> list[str]:
        if not folder.exists():
            return []
        return sorted(path.name for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")
