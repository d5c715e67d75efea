"""Warm workers as Slurm jobs."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from harness.errors import HarnessError
from harness.records.causes import Cause
from harness.runners._options import Flags, Option, Settings
from harness.runners._queue import JobBackend
from harness.runners.base import Condition, Foreseen, Loss, WorkerJob
from harness.workers.job import serve_on_each_gpu
from harness.workers.worker import Duty, serve

log = logging.getLogger(__name__)

_MINUTES = 240
"""Of a job where neither the site nor a forecast says."""
_LEAST_MINUTES = 30
"""Of a job by forecast: a worker's start on a cold file system is in none."""
_USED = 0.9
"""Share of a job's time after which its worker takes nothing more; the rest is for starting, and for leaving in time."""
_PASSED_ON = ("partition", "account", "qos", "constraint", "gres", "exclude", "nodelist")
"""Options that mean what Slurm means by them."""
_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_CLUSTERS")
"""Variables that say which Slurm is asked, and as whom; any other SLURM_ variable may be of a job that the driver runs in."""
_VARIABLES = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "gpus_per_node": ("GPUS_PER_NODE", "GPUS", "GPUS_PER_TASK"),
}
"""Which SBATCH_ variables say the same as a parameter; SBATCH_PARTITION for `partition`, and so on for all others."""
_OURS = ("SIGNAL", "REQUEUE", "OPEN_MODE", "OUTPUT", "ERROR", "ARRAY_INX", "WAIT")
"""SBATCH_ variables of what the driver relies on in every job."""
_SLURM_ALIVE = frozenset(
    "PENDING RUNNING COMPLETING CONFIGURING SUSPENDED STOPPED SIGNALING STAGE_OUT RESIZING REQUEUE_HOLD SPECIAL_EXIT".split()
)
_CAUSES = MappingProxyType(
    {
        "PREEMPTED": Cause.PREEMPTED,
        "NODE_FAIL": Cause.NODE_FAILED,
        "BOOT_FAIL": Cause.NODE_FAILED,
        "LAUNCH_FAILED": Cause.NODE_FAILED,
        "RECONFIG_FAIL": Cause.NODE_FAILED,
        "CANCELLED": Cause.CANCELLED,
        "REVOKED": Cause.CANCELLED,
        "TIMEOUT": Cause.JOB_TIME,
        "DEADLINE": Cause.JOB_TIME,
        "OUT_OF_MEMORY": Cause.HOST_MEMORY,
        "GONE": Cause.UNSEEN,
    }
)
"""What Slurm's word for a job's end says of it; FAILED and COMPLETED say nothing, so what the worker left decides."""


class SbatchFlags(Flags):
    """Flags of sbatch that no option of the runner sets, and that the driver does not rely on."""

    reserved = frozenset(_PASSED_ON) | frozenset(
        "time mem gpus-per-node cpus-per-task job-name ntasks nodes signal requeue no-requeue open-mode output error array "
        "wait wrap test-only parsable chdir".split()
    )


class SlurmBackend(JobBackend):
    """Slurm jobs, through submitit's executor; states come from squeue, and from sacct for what squeue forgot."""

    summary = "warm workers as Slurm jobs"
    options = MappingProxyType(
        {
            "time_min": Option(
                int, "minutes of each job, by forecast if left out; doubled when one was too short for its trial"
            ),
            "time_max_min": Option(int, "minutes that doubling ends at", 24 * 60),
            "cpus": Option(int, "CPU cores of each job; `threads` for each of its workers if left out"),
            "mem_gb": Option(
                float, "memory of each job in GB, by forecast if left out; doubled when a job had too little"
            ),
            "mem_max_gb": Option(float, "GB that doubling ends at; four times those of the first job if left out"),
            "sbatch": Option(SbatchFlags, "further flags of sbatch, for example '--reservation=class --exclusive'"),
            "gpus": Option(int, "GPUs of each job, which has a worker for each of them", minimum=0),
            "gpu_gb": Option(float, "memory of each GPU in GB, by which plan refuses what cannot fit"),
        }
        | {name: Option(str, f"Slurm's --{name}") for name in _PASSED_ON}
    )
    job_id_variable = "SLURM_JOB_ID"
    period_s, settle_s = 5.0, 60.0
    memory_words = (
        r"slurmstepd\S*: error: .*(memory limit|oom[-_]kill)"  # without control groups the job is only FAILED
    )

    def __init__(self, folder: Path, settings: Settings) -> None:
        super().__init__(folder, settings)
        self._missing: dict[str, float] = {}
        self.job_workers = max(1, _gpus(settings.own))
        self._foreseen: Callable[[], Foreseen] | None = None
        """What the first job is to ask for, as far as the site does not say."""
        self._minutes: float = settings.own.get("time_min", _MINUTES)
        self._gb: float | None = settings.own.get("mem_gb")
        self._first_gb = self._gb or 0.0
        self._avoided: list[str] = []

    @classmethod
    def default_workers(cls) -> int:
        """Four: how many jobs a user may have at a time nobody says."""
        return 4

    @classmethod
    def gpu_name(cls) -> str | None:
        """Not known: Slurm chooses the node."""
        return None

    @classmethod
    def device(cls, settings: Settings) -> Literal["cpu", "cuda"]:
        """A GPU where the jobs ask for one; what this machine has says nothing about theirs."""
        return "cuda" if _gpus(settings.own) else "cpu"

    @classmethod
    def memory(cls, settings: Settings) -> int | None:
        """What `gpu_gb` says of a GPU, or `mem_gb` of a job without one: which node Slurm will choose is not known."""
        told: float | None = settings.own.get("gpu_gb" if cls.device(settings) == "cuda" else "mem_gb")
        return round(told * 1e9) if told else None

    @classmethod
    def examine(cls) -> Condition:
        """Whether this machine can submit jobs, to which partitions, and whether ended jobs are known."""
        if shutil.which("sbatch") is None:
            return Condition("note", "no sbatch here: `--runner slurm` needs a machine that can submit to Slurm")
        answer = subprocess.run(["sinfo", "-h", "-o", "%P %a %D"], capture_output=True, text=True, timeout=20)
        if answer.returncode:
            return Condition("error", f"sbatch is here, but sinfo fails: {answer.stderr.strip()}")
        accounting = subprocess.run(["sacct", "-n", "-X"], capture_output=True, text=True, timeout=20).returncode == 0
        rows = ", ".join(" ".join(line.split()) for line in answer.stdout.splitlines())
        return Condition("ok", f"partitions {rows}; accounting {'works' if accounting else 'is off: squeue is used'}")

    def start(self, duty: Duty, running: Sequence[WorkerJob]) -> WorkerJob:
        """Submit one job; Slurm must not requeue it, since the driver does that for what it had claimed."""
        self._ask_for_what_is_foreseen()
        try:
            return self._submit(duty)
        except HarnessError:
            if not self._avoided:
                raise
            log.warning(
                "Slurm has no place for the job without %s, so they may be used again", ", ".join(self._avoided)
            )
            self._avoided.clear()
            return self._submit(duty)

    def foresee(self, foreseen: Callable[[], Foreseen]) -> None:
        """Have the first job ask for it; where the site says what a job gets, that counts."""
        self._foreseen = foreseen

    def _ask_for_what_is_foreseen(self) -> None:
        """Once: from then on only a job that had too little changes it."""
        own = self.settings.own
        if self._foreseen is None or {"time_min", "mem_gb"} <= own.keys():
            return
        foreseen, self._foreseen = self._foreseen(), None
        if "time_min" not in own:
            working = max(foreseen.pack_s, foreseen.worker_s) / 60 / _USED
            self._minutes = min(max(_LEAST_MINUTES, math.ceil(working)), own["time_max_min"], self._place.minutes)
        # a site that does not say what its nodes have refuses whatever is asked for
        if "mem_gb" not in own and foreseen.memory_bytes and self._place.mb > 1:
            needed = math.ceil(2 * self.job_workers * foreseen.memory_bytes / 2**30) / 2
            self._first_gb = self._gb = min(needed, own.get("mem_max_gb", math.inf), self._place.mb / 1024)
        memory = f" and {self._gb:g} GB of memory" if self._gb else ""
        log.info("jobs ask for %d minutes%s, by forecast where the site does not say", self._minutes, memory)

    @cached_property
    def _place(self) -> Places:
        return places(self.settings.own.get("partition"))

    def _submit(self, duty: Duty) -> WorkerJob:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
        from submitit.helpers import clean_env

        minutes = int(self._minutes)
        limit_s = _USED * 60 * minutes  # what is left is for starting, and for leaving before Slurm kills the job
        try:
            executor = SlurmExecutor(self.folder)
            parameters = self._parameters(minutes)
            executor.update_parameters(**parameters)
            kept = _kept(os.environ, parameters)
            with clean_env():  # inside a Slurm job, its variables would shape the new job
                os.environ |= kept  # `clean_env` gives everything back as it was
                told = replace(duty, limit_s=limit_s, workers=self.job_workers)
                job = executor.submit(serve if self.job_workers == 1 else serve_on_each_gpu, told)
        except (RuntimeError, OSError, FailedJobError, FailedSubmissionError) as error:
            raise HarnessError(
                f"Slurm must accept the job, but says: {' '.join(str(error).split())[-300:]}: change --runner-option"
            ) from error
        return WorkerJob(job=job.job_id)

    def avoid(self, node: str) -> bool:
        """Exclude it from the jobs to come."""
        self._avoided.append(node)
        return True

    def lengthen(self) -> None:
        """Double the minutes of the jobs to come, up to `time_max_min`."""
        most = min(self.settings.own["time_max_min"], self._place.minutes)  # beyond that, a job would wait for ever
        self._minutes = max(self._minutes, min(2 * self._minutes, most))
        log.warning("the next jobs ask for %d minutes, since one was too short", self._minutes)

    def enlarge(self) -> None:
        """Double the memory of the jobs to come, up to `mem_max_gb`; where none was asked for, nobody knows what to double."""
        if self._gb is None:
            log.warning(
                "a job had too little memory, and how much one needs is not known: set runner option mem_gb, which is "
                "raised where it does not suffice"
            )
            return
        most = self.settings.own.get("mem_max_gb", 4 * self._first_gb)
        room = self._place.mb / 1024 if self._place.mb > 1 else math.inf
        self._gb = max(self._gb, min(2 * self._gb, most, room))
        log.warning("the next jobs ask for %g GB, since one had too little memory", self._gb)

    def dead(self, jobs: Sequence[WorkerJob]) -> dict[str, Loss]:
        """Jobs that ended, and those that Slurm has not known for 30 s; none where Slurm does not answer."""
        states = slurm_states([job.job for job in jobs])
        if states is None:
            return {}
        gone: dict[str, Loss] = {}
        for job in jobs:
            state = states.get(job.job, "")
            if state:
                self._missing.pop(job.job, None)
            elif time.monotonic() - self._missing.setdefault(job.job, time.monotonic()) > 30:
                state = "GONE"  # purged from its memory, and no accounting to ask
            if state and state not in _SLURM_ALIVE:
                cause = _CAUSES.get(state, Cause.KILLED)
                gone[job.job] = Loss(cause, f"its Slurm job {job.job} ended as {state}")
        return gone

    def cancel(self, jobs: Sequence[WorkerJob]) -> None:
        """Run `scancel`; jobs that it cannot reach end by themselves when they are idle."""
        if jobs:
            with suppress(FileNotFoundError):  # this machine has no Slurm, so they cannot be reached from here
                subprocess.run(["scancel", *(job.job for job in jobs)], capture_output=True, check=False)

    def jobs_on(self, node: str) -> Collection[str]:
        """What squeue says."""
        return _lines(["squeue", "-h", "-w", node, "-o", "%i"]) or ()

    def set_node(self, node: str, up: bool) -> str:
        """By scontrol, which lets operators."""
        state = ["state=resume"] if up else ["state=down", "reason=harness drill"]
        done = subprocess.run(["scontrol", "update", f"nodename={node}", *state], capture_output=True, text=True)
        return " ".join(done.stderr.split()) or "scontrol refused" if done.returncode else ""

    def _parameters(self, minutes: int) -> dict[str, Any]:
        own, threads = self.settings.own, self.settings.threads
        parameters = {name: own[name] for name in _PASSED_ON if name in own}
        if self._avoided:
            parameters["exclude"] = ",".join([*filter(None, [own.get("exclude")]), *self._avoided])
        if self._gb is not None:
            parameters["mem"] = f"{round(self._gb * 1024)}MB"
        if "gpus" in own:
            parameters["gpus_per_node"] = own["gpus"]
        cores = own.get("cpus", threads * self.job_workers)
        return parameters | {
            "time": minutes,
            "cpus_per_task": cores,
            "srun_args": [f"--cpus-per-task={cores}"],  # from 22.05 on srun does not take it from sbatch: one core each
            "job_name": "harness",
            "setup": [f"export OMP_NUM_THREADS={threads}"],
            "signal_delay_s": 30,  # SIGUSR2 comes so long before the time limit, and the worker leaves
            "additional_parameters": {**own.get("sbatch", Flags("")).values, "no-requeue": True},
        }


def _kept(environment: Mapping[str, str], parameters: Mapping[str, Any]) -> dict[str, str]:
    """The variables of Slurm that a submission needs: which Slurm, and what site and user want of all their jobs.

    A variable counts more for sbatch than what a script says, so one that says the same as a parameter is left out.
    """
    said = {variable for name in parameters for variable in _VARIABLES.get(name, (name.upper(),))}
    said |= {name.upper().replace("-", "_") for name in parameters.get("additional_parameters", ())}
    ours = {f"SBATCH_{variable}" for variable in said.union(_OURS)}
    return {
        name: value
        for name, value in environment.items()
        if name in _SITE or (name.startswith("SBATCH_") and name not in ours)
    }


def _gpus(own: Mapping[str, Any]) -> int:
    """GPUs that a job asks for, by option `gpus` or in Slurm's words, such as `gpu:a100:4`."""
    if "gpus" in own:
        return int(own["gpus"])
    asked = next((one for one in own.get("gres", "").split(",") if one.split(":")[0] in ("gpu", "gres/gpu")), None)
    count = asked.rpartition(":")[2] if asked else "0"
    return int(count) if count.isdigit() else 1


class Places(NamedTuple):
    """What a partition gives a job at most; infinity where nobody says."""

    minutes: float
    mb: float
    """Memory of its largest node."""


def places(partition: str | None) -> Places:
    """What Slurm says of a partition; of the default one where none is named."""
    said = _lines(["sinfo", "-h", "-e", "-o", "%P|%l|%m"]) or []
    rows = [row.split("|") for row in said]
    wanted = (partition or "").split(",")  # whichever of several can start it first
    ours = [row for row in rows if (row[0].rstrip("*") in wanted if partition else row[0].endswith("*"))]
    minutes = min((_minutes(limit) for _, limit, _ in ours), default=math.inf)
    return Places(minutes, max((float(mb.rstrip("+")) for *_, mb in ours), default=math.inf))


def _minutes(limit: str) -> float:
    """A time limit in Slurm's words: `infinite`, or `[days-]hours:minutes:seconds`, of which hours may be left out."""
    if limit == "infinite":
        return math.inf
    days, _, clock = limit.rpartition("-")
    hours, minutes, seconds = ["0", "0", *clock.split(":")][-3:]
    return int(days or 0) * 24 * 60 + int(hours) * 60 + int(minutes) + int(seconds) // 60


def slurm_states(jobs: Sequence[str]) -> dict[str, str] | None:
    """State of each job that Slurm knows, in Slurm's words, by id; None when Slurm does not answer.

    squeue forgets a job minutes after its end (MinJobAge); sacct does not, but needs accounting. So both are asked.
    """
    if not jobs:
        return {}
    states = _ask(["squeue", "--me", "-h", "-t", "all", "-o", "%i|%T"])
    if states is None:
        return None
    missing = [job for job in jobs if job not in states]
    if missing:
        states |= _ask(["sacct", "-X", "-n", "-P", "-o", "JobID,State", "-j", ",".join(missing)]) or {}
    return {job: states[job] for job in jobs if job in states}


def _ask(command: list[str]) -> dict[str, str] | None:
    """Lines of `id|state` that a command prints, as a mapping; None where it fails."""
    said = _lines(command)
    if said is None:
        return None
    pairs = (line.split("|", 1) for line in said if "|" in line)
    return {job: state.split()[0] for job, state in pairs}  # "CANCELLED by 0"


def _lines(command: list[str]) -> list[str] | None:
    """What a command prints; None where it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if answer.returncode else answer.stdout.splitlines()
