"""Warm workers as processes of this machine."""

from __future__ import annotations

import atexit
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.records.causes import Cause
from harness.runners._options import Settings
from harness.runners._queue import JobBackend
from harness.runners.base import Loss, WorkerJob
from harness.workers.devices import gpus, memory_kills
from harness.workers.worker import Duty, serve

log = logging.getLogger(__name__)


class LocalBackend(JobBackend):
    """Processes of this machine, through submitit's local executor; each gets one GPU if there are any."""

    summary = "warm worker processes of this machine, each with one GPU if there are any"
    job_id_variable = "SUBMITIT_LOCAL_JOB_ID"
    period_s = 0.2
    starts_early = True

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, settings)
        self._children: list[Any] = []
        """Jobs that this process started and that live; they may outlive it."""
        self._memory_kills, self._memory_killed_at = memory_kills(), -math.inf
        atexit.register(self._children.clear)  # while what submitit does in `__del__` still works

    def start(self, duty: Duty, running: Sequence[WorkerJob]) -> WorkerJob:
        """Start a controller process, which starts the worker and outlives the driver."""
        from submitit import LocalExecutor

        taken = [job.gpu for job in running]
        gpu = min(gpus(), key=taken.count, default="")
        executor = LocalExecutor(self.folder)
        executor.update_parameters(timeout_min=60 * 24 * 30)  # submitit kills a job after 5 minutes otherwise
        with _environment(OMP_NUM_THREADS=str(self.settings.threads)), _streams_to(self.folder / "controllers.log"):
            job = executor.submit(serve, replace(duty, environment={**duty.environment, "CUDA_VISIBLE_DEVICES": gpu}))
        self._children.append(job)
        return WorkerJob(job=job.job_id, birth=_birth(int(job.job_id)) or "", gpu=gpu)

    def dead(self, jobs: Sequence[WorkerJob]) -> dict[str, Loss]:
        """Jobs whose controller process is gone."""
        self._children[:] = [child for child in self._children if not child.done()]  # collects the dead ones, too
        if (kills := memory_kills()) > self._memory_kills:
            self._memory_kills, self._memory_killed_at = kills, time.monotonic()
        # A controller notices within a second or two that its worker is dead; on a busy machine later.
        short = time.monotonic() - self._memory_killed_at < 10
        cause, why = (Cause.HOST_MEMORY, ": out of memory") if short else (Cause.KILLED, "")
        return {job.job: Loss(cause, f"its worker process died{why}") for job in jobs if not self._alive(job)}

    def cancel(self, jobs: Sequence[WorkerJob]) -> None:
        """Send SIGTERM, which controllers pass on to their workers, until all are gone; after 10 s SIGKILL."""
        patience = time.monotonic() + 10
        while left := [job for job in jobs if self._alive(job)]:
            for job in left:
                _kill(int(job.job), signal.SIGTERM if time.monotonic() < patience else signal.SIGKILL)
            time.sleep(0.1)
        self.dead(())

    def _alive(self, job: WorkerJob) -> bool:
        return job.host == socket.gethostname() and _birth(int(job.job)) == job.birth


def _birth(pid: int) -> str | None:
    """When a living process was started, in clock ticks since boot; "?" where the system does not say, None for a dead one."""
    if Path("/proc/self/stat").exists():
        try:
            # After the command in parentheses, which may hold spaces: first the state, and the start as the 20th field.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]  # a zombie is dead, and waits only to be collected
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return "?"


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        log.debug("process %d was gone already", pid)


@contextmanager
def _streams_to(path: Path) -> Iterator[None]:
    """Have processes that are started inside write to a file instead of the driver's output.

    They outlive the driver, and would hold its pipe open: whoever reads that to its end would wait for them.
    """
    copies = {number: os.dup(number) for number in (1, 2)}
    try:
        with path.open("ab") as file:
            for number in copies:
                os.dup2(file.fileno(), number)
        yield
    finally:
        for number, copy in copies.items():
            os.dup2(copy, number)
            os.close(copy)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
