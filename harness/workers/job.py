"""A job of several workers, each with a GPU of its own: the process that starts them, and says what became of them.

A scheduler knows the job only, which lasts until the last of its workers has left. So what a worker held that died
before the others is moved to `queue/failed` here, with the cause, and another worker takes its place.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType

from harness.records.causes import Cause
from harness.workers.devices import gpus, memory_kills
from harness.workers.worker import TOLD_TO_LEAVE, Duty, Folders, die_with_parent, fail, serve

log = logging.getLogger(__name__)


def serve_on_each_gpu(duty: Duty) -> int:
    """The life of a job with a worker on each of its GPUs.

    Returns:
        How many workers it had, those that took the place of others included.
    """
    die_with_parent()
    return _Crew(duty, gpus()[: duty.workers] or ("",)).work()


@dataclass(frozen=True)
class _Worker:
    """A worker of the job."""

    process: BaseProcess
    gpu: str
    place: str
    """Name of its folder below the job's."""


class _Crew:
    """The workers of a job."""

    def __init__(self, duty: Duty, devices: tuple[str, ...]) -> None:
        self.duty, self.folders = duty, Folders(duty.queue)
        self.mine = self.folders.claimed / os.environ[duty.job_id_variable]
        self._told_to_leave = False
        self._memory_kills = memory_kills()
        self._count = 0
        for number in TOLD_TO_LEAVE:
            signal.signal(number, partial(self._tell_all, os.getpid()))
        self._workers: list[_Worker] = []
        for place, gpu in enumerate(devices):
            self._start(gpu, str(place))

    def work(self) -> int:
        """Wait until all have left."""
        while self._workers:
            wait([worker.process.sentinel for worker in self._workers])
            for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
                self._workers.remove(worker)
                self._end(worker)
        return self._count

    def _start(self, gpu: str, place: str) -> None:
        # Nothing heavy is imported yet, and no thread runs: a fork costs nothing, and every worker imports for itself.
        process = multiprocessing.get_context("fork").Process(target=_work, args=(self.duty, gpu, place))
        process.start()
        self._workers.append(_Worker(process, gpu, place))
        self._count += 1

    def _tell_all(self, own: int, number: int, frame: FrameType | None) -> None:
        """Pass a signal on; a worker that Slurm told itself takes the second one for the same."""
        if os.getpid() != own:  # a worker that has just been forked
            raise SystemExit(128 + number)
        self._told_to_leave = True
        for worker in self._workers:
            if worker.process.is_alive() and worker.process.pid:
                os.kill(worker.process.pid, number)

    def _end(self, worker: _Worker) -> None:
        """Give up what a dead worker held, and start another one; when all were told to leave, the driver sees to it."""
        held = sorted((self.mine / worker.place).glob("*.json"))
        if self._told_to_leave or not held:  # one that held nothing had nothing to do, or cannot start
            return
        cause, reason = self._why(worker.process.exitcode or 0)
        for item in held:
            fail(item, self.folders, cause, reason, max(0.0, time.time() - item.stat().st_ctime))
        log.warning("the worker on GPU %s was lost: %s", worker.gpu, reason)
        self._start(worker.gpu, worker.place)

    def _why(self, code: int) -> tuple[Cause, str]:
        if code >= 0:
            told = TOLD_TO_LEAVE.get(code - 128) if code > 128 else None  # type: ignore[call-overload]
            return told or Cause.KILLED, f"its worker process ended with {code}"
        name = signal.Signals(-code).name
        if code != -signal.SIGKILL:
            return Cause.DIED, f"its worker process died of {name}"
        before, self._memory_kills = self._memory_kills, memory_kills()
        if self._memory_kills > before:
            return Cause.HOST_MEMORY, "its worker process died: out of memory"
        return Cause.KILLED, f"its worker process died of {name}"


def _work(duty: Duty, gpu: str, place: str) -> None:
    """What a worker's process does: it sees one GPU only, before anything asks for one."""
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    serve(duty, place)
