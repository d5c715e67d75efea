"""Workers of this machine without the seconds that a new Python takes: the runner of `benchmarks/chaos.py`.

As with `local`, a controller outlives the driver and has one worker, which dies with it; only that both are forks of a
process that has imported everything.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness.records.causes import Cause
from harness.runners.base import Loss, WorkerJob
from harness.runners.local import LocalBackend, _birth
from harness.workers.worker import Duty, serve


class Forked(LocalBackend):
    """Controllers and workers as forks."""

    summary = "forks of the driver, for benchmarks"
    period_s = 0.05
    starts_early = False

    def start(self, duty: Duty, running: Sequence[WorkerJob]) -> WorkerJob:
        """Fork a controller, which forks its worker."""
        self.folder.mkdir(parents=True, exist_ok=True)
        told = replace(duty, environment={})
        pid = fork(lambda: control(self.folder, told))
        return WorkerJob(job=str(pid), birth=_birth(pid) or "")

    def dead(self, jobs: Sequence[WorkerJob]) -> dict[str, Loss]:
        """Jobs whose controller is gone; zombies count as dead."""
        return {job.job: Loss(Cause.KILLED, "its worker process died") for job in jobs if not self._alive(job)}


def fork(work: Callable[[], int]) -> int:
    """A child that does some work with none of its parent's files open, in a session of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        os.closerange(3, 256)
        code = work()
    finally:
        os._exit(code)


def control(folder: Path, duty: Duty) -> int:
    """A controller's life: its worker dies with it, and it ends with its worker."""
    job = str(os.getpid())
    os.environ[duty.job_id_variable] = job
    log = os.open(folder / f"{job}_0_log.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)
    worker = os.fork()
    if not worker:
        code = 71
        try:
            code = 0 if serve(duty) >= 0 else 1
        finally:
            os._exit(code)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(worker, number))
    _, status = os.waitpid(worker, 0)
    return 0 if status == 0 else 1
