"""A probe job: what a worker finds where trials will run, and whether its files are those of this machine."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import tryout
from harness.cli.doctor import Finding, look_around
from harness.files import parse_json, write_atomically
from harness.records.codec import Record, decode, to_json
from harness.records.results import write_result
from harness.records.trial import TrialConfig, TrialResult
from harness.runners.base import parse_options

if TYPE_CHECKING:
    from harness.trial.workspace import Workspace
    from harness.workers.worker import Work

PATIENCE_S = 600.0
SKEW_S = 5.0
"""Seconds that clocks may differ before it is said; times in records are those of each node."""
_HELD, _FOUND = "held", "found.json"


@dataclass(frozen=True)
class Found(Record):
    """What a probe's worker writes."""

    findings: tuple[Finding, ...]


def probe(runner: str, options: Mapping[str, str], root: Path) -> list[Finding]:
    """Submit one trial that looks around, and say what it found.

    Args:
        runner: Where trials will run.
        options: The runner's options.
        root: Project folder; workers must see it.

    Raises:
        UsageError: For an unknown runner or option.
    """
    parse_options(runner, options)
    results = root / "results"
    results.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="probe-", dir=results)).resolve()
    try:
        with (folder / _HELD).open("w") as held:
            _hold(held.fileno())
            return _answers(folder, tryout.command(folder, f"{__name__}:work", 1, runner, {"workers": "1", **options}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answers(folder: Path, command: list[str]) -> list[Finding]:
    """What the probe's worker wrote, or why it wrote nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        wait = f"no worker answered within {PATIENCE_S:.0f} s"
        return [Finding("probe", "error", f"{wait}: see whether the queue is full, or ask for less (--runner-option)")]
    if not (folder / _FOUND).exists():
        said = " ".join(done.stderr.split())[-600:]
        return [Finding("probe", "error", f"the job ended without an answer: {said or 'nothing was said'}")]
    return list(decode(Found, parse_json((folder / _FOUND).read_text())).findings)


def work(workspace: Workspace) -> Work:
    """What the probe's worker does: look around, and write down what it found."""
    return lambda configs: [_look(config, workspace) for config in configs]


def _look(config: TrialConfig, workspace: Workspace) -> TrialResult:
    start, folder, host = time.monotonic(), workspace.paths.results, socket.gethostname()
    found = [*look_around(folder), _locked(folder / _HELD, host), _clock(folder)]
    told = Found(tuple(replace(one, text=f"on {host}: {one.text}") for one in found))
    write_atomically(folder / _FOUND, json.dumps(to_json(told)))
    result = tryout.complete(config, time.monotonic() - start)
    write_result(workspace.paths, result)
    return result


def _hold(handle: int) -> bool:
    """Whether this process has the lock now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked(path: Path, host: str) -> Finding:
    """Whether the lock that the submitting process holds is seen from here."""
    with path.open("r+") as file:
        if _hold(file.fileno()):
            return Finding(
                "locks",
                "error",
                f"a lock that another host holds on {path.parent.parent} does not hold on {host}, so two studies would run "
                "a trial twice: mount it with locks on all nodes (NFS without nolock or local_lock), or run one study at a time",
            )
    return Finding("locks", "ok", "a lock that the submitting process holds is seen")


def _clock(folder: Path) -> Finding:
    """This host's clock against that of the file system."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        skew = time.time() - os.fstat(file.fileno()).st_mtime
    if abs(skew) > SKEW_S:
        return Finding("clock", "note", f"the clock differs from the file system's by {skew:+.0f} s: synchronise it")
    return Finding("clock", "ok", f"the clock and the file system's differ by less than {SKEW_S:.0f} s")
