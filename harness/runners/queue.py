"""A runner that feeds warm workers through a queue of files, whoever started them.

A driver that was killed finds its workers again by their lines in `jobs.jsonl`, and its packs by their files.
A local worker of another host cannot be seen from here and counts as dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.members import append_line, now, read_lines
from harness.records import TrialConfig, TrialStatus
from harness.runners.base import Backend, Ended, Loss, Runner, WorkerJob
from harness.worker import Duty, Folders, read_item, write_item

log = logging.getLogger(__name__)

_START_ATTEMPTS = 3


class QueueRunner(Runner):
    """Feeds warm workers through the queue of a study; `backend` submits them."""

    def __init__(self, folder: Path, duty: Duty, backend: Backend, options: Mapping[str, Any]) -> None:
        self.duty, self.backend, self.settle_s = duty, backend, backend.settle_s
        self.folders, self.lines = Folders(duty.queue), folder / "jobs.jsonl"
        self.workers = options["workers"]
        self.capacity = (self.workers + max(1, self.workers // 4)) * options["pack"]
        self.folders.make()
        self._last_look, self._false_starts = -1e9, 0
        self.jobs = {job.job: job for job in recorded_jobs(self.lines)}
        self.items: dict[str, list[TrialConfig]] = {}
        self._adopt()

    def submit(self, configs: Sequence[TrialConfig]) -> None:
        """Queue a pack, and start another worker if there are fewer than packs and than allowed."""
        name = f"{time.time_ns():020d}-{configs[0].key}.json"
        self.items[name] = list(configs)
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

    def under_way(self) -> set[str]:
        """Keys of the trials in the queue."""
        return {config.key for configs in self.items.values() for config in configs}

    def close(self) -> None:
        """End all workers; what they had not finished is forgotten here and asked for again by the next driver."""
        self.backend.cancel(list(self.jobs.values()))
        for job in list(self.jobs):
            self._bury(job, "stopped by the driver")
        for path in [*self.folders.todo.iterdir(), *self.folders.claimed.glob("*/*")]:
            path.unlink(missing_ok=True)
        self.items.clear()

    def _adopt(self) -> None:
        """Take over the queue of an earlier driver: what waits or runs goes on, what a dead worker held is reported."""
        for folder in (self.folders.done, self.folders.failed):
            for path in folder.iterdir():
                path.unlink()
        for folder in (self.folders.todo, *self.folders.claimed.iterdir()):
            self.items |= {name: read_item(folder / name) for name in self._present(folder)}
        if self.items:
            log.info("%d packs of an earlier driver are still under way", len(self.items))

    def _staff(self) -> None:
        while len(self.jobs) < min(self.workers, len(self.items)):
            job = self.backend.start(self.duty, list(self.jobs.values()))
            self.jobs[job.job] = job
            append_line(self.lines, {"event": "started", "job": vars(job)})

    def _look(self) -> dict[str, Loss]:
        """The workers that died since the last look, orphans of workers that are unknown among them."""
        self._last_look = time.monotonic()
        dead = self.backend.dead(list(self.jobs.values()))
        for job, loss in dead.items():
            self._bury(job, loss.reason)
            self._count_false_start(job)
        unknown = {path.name for path in self.folders.claimed.iterdir()} - set(self.jobs) - set(dead)
        return dead | dict.fromkeys(unknown, Loss("worker", TrialStatus.CRASHED, "its worker died unseen"))

    def _bury(self, job: str, reason: str) -> None:
        del self.jobs[job]
        append_line(self.lines, {"event": "ended", "job": job, "reason": reason, "at": now()})

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
            held = max(0.0, time.time() - claimed.stat().st_ctime)  # a rename sets ctime: the moment of the claim
            claimed.unlink()
        except FileNotFoundError:  # it had ended after all
            return self._finish(name, None)
        return self._finish(name, replace(loss, seconds=held))

    def _finish(self, name: str, loss: Loss | None) -> Ended:
        for folder in (self.folders.done, self.folders.failed):
            for leftover in (folder / name, folder / f"{name}.why"):
                leftover.unlink(missing_ok=True)
        return Ended(tuple(self.items.pop(name)), loss)

    def _why(self, name: str) -> Loss:
        why = self.folders.failed / f"{name}.why"
        lines = read_lines(why)
        if not lines:
            return Loss("storage", TrialStatus.CRASHED, "nothing could be written")
        return Loss(lines[0]["kind"], TrialStatus.CRASHED, lines[0]["reason"])

    def _in(self, folder: Path) -> list[str]:
        return [name for name in self._present(folder) if name in self.items]

    def _present(self, folder: Path) -> list[str]:
        if not folder.exists():
            return []
        return sorted(path.name for path in folder.iterdir() if path.suffix == ".json" and path.name[0] != ".")


def recorded_jobs(lines: Path) -> list[WorkerJob]:
    """The workers that `jobs.jsonl` does not say the end of; the ids of processes come back, so order counts."""
    jobs: dict[str, WorkerJob] = {}
    for line in read_lines(lines):
        if line["event"] == "started":
            jobs[line["job"]["job"]] = WorkerJob(**line["job"])
        elif line["event"] == "ended":
            jobs.pop(line["job"], None)
    return list(jobs.values())


def retire(lines: Path, backend: Backend, kind: str) -> None:
    """End the workers that an earlier driver started with another runner, lest a trial run in both."""
    jobs = [job for job in recorded_jobs(lines) if job.runner == kind]
    backend.cancel(jobs)
    for job in jobs:
        append_line(lines, {"event": "ended", "job": job.job, "reason": "another runner took over", "at": now()})
