"""Where packs of trials run: in this process, in processes of this machine, or as Slurm jobs; one interface.

Local and Slurm runners submit warm workers (`worker.py`) through submitit and talk to them through files only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from harness.errors import UsageError, one_of
from harness.records.paths import StudyPaths
from harness.runners.base import InlineRunner, Runner
from harness.runners.devices import gpus
from harness.runners.worker import Duty
from harness.trial.packs import LARGEST

_COMMON = {"workers": int, "threads": int, "pack": int, "idle_s": float, "time_limit_min": float}
OPTIONS: Mapping[str, Mapping[str, type]] = {
    "inline": _COMMON,
    "local": _COMMON,
    "slurm": _COMMON
    | {"time_min": int, "mem_gb": float, "gpus": int, "cpus": int}
    | dict.fromkeys(("partition", "account", "qos", "constraint", "gres", "exclude", "nodelist"), str),
}
"""Options of each runner: at most `pack` trials go to a worker at once and train together where they can, `workers`
packs run at a time, `threads` are CPU threads of each worker; a worker stays for `idle_s` after a step, for the next one
to find it warm; a trial that takes longer than `time_limit_min` ends as timed out. The rest are Slurm's."""


def parse_options(runner: str, options: Mapping[str, str]) -> dict[str, Any]:
    """A runner's options with their types and defaults.

    Raises:
        UsageError: For an unknown runner or option, or a value that is not a number where one is needed.
    """
    if runner not in OPTIONS:
        raise UsageError(one_of("runner", runner, list(OPTIONS)))
    parsed: dict[str, Any] = {
        "threads": 1,
        "pack": LARGEST,
        "workers": 4 if runner == "slurm" else len(gpus()) or cores(),
        "idle_s": 60.0,  # resolving a study's names takes the next step's driver seconds, on a busy machine tens of them
    }
    for key, value in options.items():
        if key not in OPTIONS[runner]:
            raise UsageError(one_of(f"option of runner {runner}", key, list(OPTIONS[runner])))
        kind = OPTIONS[runner][key]
        try:
            parsed[key] = kind(value)
        except ValueError:
            raise UsageError(f"runner option {key} must be a number, but got '{value}': for example {key}=4") from None
        if kind is int and key != "gpus" and parsed[key] < 1:
            raise UsageError(f"runner option {key} must be at least 1, but got {value}: raise it")
        if kind is float and not parsed[key] > 0:
            raise UsageError(f"runner option {key} must be above 0, but got {value}: raise it")
    return parsed


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_runner(runner: str, options: Mapping[str, Any], study: StudyPaths, duty: Duty) -> Runner:
    """The runner of a study.

    Args:
        runner: `inline`, `local` or `slurm`.
        options: From `parse_options`.
        study: The study's files, on a file system that the workers share.
        duty: What workers do.
    """
    from harness.runners.local import LocalBackend
    from harness.runners.queue import QueueRunner, retire
    from harness.runners.slurm import SlurmBackend

    study.logs.mkdir(parents=True, exist_ok=True)
    study.logs.chmod(0o700)  # submitit's pickles hold what workers are told
    own = study.logs / f"{time.time_ns()}"  # process ids come back; what submitit keeps by id must not
    backends = {"local": LocalBackend(own, options), "slurm": SlurmBackend(own, options)}
    for kind, backend in backends.items():
        if kind != runner:
            retire(study.jobs, backend, kind)
    return InlineRunner(duty) if runner == "inline" else QueueRunner(study.jobs, duty, backends[runner], options)
