"""What this machine can do, and what stands in the way: each finding says what it means and what to do."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.plugins import load_all
from harness.records.codec import Record
from harness.workers.devices import gpu_name

if TYPE_CHECKING:
    from harness.runners.base import Backend

LOW_DISK_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class Finding(Record):
    """One thing that was looked at."""

    topic: str
    level: Literal["ok", "note", "error"]
    """An error stops work here; a note limits it."""
    text: str


def examine(root: Path) -> list[Finding]:
    """Look at everything; a check that itself fails is an error finding, never an exception."""
    looks = [_guarded(name, partial(_runner, name, backend)) for name, backend in load_all("runners").items()]
    return [*look_around(root), *(finding for finding in looks if finding)]


def look_around(root: Path) -> list[Finding]:
    """Look at this host alone, and not at what can be reached from it."""
    checks: Sequence[Callable[[Path], Finding]] = (
        _libraries, _device, _bitsandbytes, _processors, _speed, _disk, _scratch, _writable, _locks, _hub,
    )  # fmt: skip
    looks = [_guarded(check.__name__.strip("_"), partial(check, root)) for check in checks]
    return [finding for finding in looks if finding]


def examination_text(findings: Sequence[Finding]) -> str:
    """One line per finding."""
    return "\n".join(f"{finding.level:<5} {finding.topic:<10} {finding.text}" for finding in findings)


def _guarded(topic: str, check: Callable[[], Finding | None]) -> Finding | None:
    try:
        return check()
    except Exception as error:  # a doctor that dies of what it should report helps nobody
        return Finding(topic, "error", f"could not be checked: {type(error).__name__}: {error}")


def _libraries(root: Path) -> Finding:
    pins = root / "constraints.txt"
    if not pins.exists():
        return Finding(
            "libraries", "note", "no constraints.txt here, so versions were not compared with the tested ones"
        )
    wrong = []
    for line in pins.read_text().splitlines():
        name, _, version = line.partition("==")
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # pinned for another platform, or optional
            continue
        # A build tag such as 2.13.0+cpu says for which device torch was compiled, not which version it is.
        if version and installed.split("+")[0] != version:
            wrong.append(f"{name} {installed} (tested: {version})")
    if wrong:
        return Finding("libraries", "note", "other versions than tested: " + ", ".join(wrong) + "; scores may differ")
    return Finding("libraries", "ok", "all installed versions are the tested ones")


def _device(root: Path) -> Finding:
    import torch

    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        return Finding("device", "ok", f"{torch.cuda.device_count()} x {name}, {memory / 1e9:.0f} GB each")
    if torch.version.cuda and (seen := gpu_name()):
        return Finding(
            "device",
            "error",
            f"the driver sees {seen}, but torch, which is for CUDA {torch.version.cuda}, does not: update the driver",
        )
    return Finding("device", "note", "no GPU that torch can use: trials run on the processor, small models only")


def _bitsandbytes(root: Path) -> Finding:
    """By quantising something: the package imports where its kernels do not run."""
    import torch

    from harness.methods._four_bits import through_four_bits

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = float(through_four_bits(torch.ones(64, 64, device=device)).mean())
    except (RuntimeError, NotImplementedError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        return Finding("4 bits", "note", f"bitsandbytes does not run on {device} ({cause}): qlora and its like cannot")
    level: Literal["ok", "error"] = "ok" if abs(found - 1) < 0.05 else "error"
    return Finding("4 bits", level, f"bitsandbytes gives back a matrix of ones as {found:.2f} on {device}")


def _processors(root: Path) -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("processors", "ok", f"{usable} usable; by default as many single-threaded workers run side by side")


def _speed(root: Path) -> Finding:
    import torch

    from harness.trial.hardware import measured_peak

    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain, half = (measured_peak(device, dtype) / 1e9 for dtype in ("float32", "bfloat16"))
    on = "the GPU" if device == "cuda" else f"{torch.get_num_threads()} thread(s)"
    text = f"matrix products reach {plain:,.0f} GFLOP/s in float32 and {half:,.0f} in bfloat16 on {on}"
    return Finding("speed", "ok", f"{text}; whether that makes training faster is measured with each base model")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free
    level: Literal["ok", "error"] = "ok" if free > LOW_DISK_BYTES else "error"
    return Finding(
        "disk", level, f"{free / 1e9:.1f} GB free in {root.resolve()}" + ("" if level == "ok" else ": free some space")
    )


def _scratch(root: Path) -> Finding:
    """Where trials keep what they do not keep."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < LOW_DISK_BYTES:
        return Finding("scratch", "error", f"{free / 1e9:.1f} GB free in {folder}: free some space, or set TMPDIR")
    return Finding("scratch", "ok", f"{free / 1e9:.1f} GB free in {folder}")


def _locks(root: Path) -> Finding:
    """Two open files of one process are strangers to flock, as two processes are."""
    with tempfile.NamedTemporaryFile(dir=_results(root)) as file, open(file.name) as other:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding("locks", "ok", "one process sees what another one has locked")
        except OSError as error:
            why = f"has no locks ({error.strerror})"
        else:
            why = "does not keep its locks"
    return Finding("locks", "note", f"{_results(root)} {why}: run one study at a time there, or mount it with locks")


def _results(root: Path) -> Path:
    return root / "results" if (root / "results").is_dir() else root


def _writable(root: Path) -> Finding:
    folder = _results(root)
    # By writing: permission bits say nothing of a full disk, a quota or a read-only mount.
    with tempfile.NamedTemporaryFile(dir=folder):
        return Finding("results", "ok", f"{folder} is writable")


def _runner(name: str, backend: type[Backend]) -> Finding | None:
    condition = backend.examine()
    return Finding(name, condition.level, condition.text) if condition else None


def _hub(root: Path) -> Finding:
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True"):
        return Finding("hub", "note", "HF_HUB_OFFLINE is set: only embedded, local and cached models and data work")
    return Finding("hub", "ok", "hub models and data are downloaded when first used")
