"""The processors and GPUs that this process may use."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path


def gpus() -> tuple[str, ...]:
    """Ids of the NVIDIA GPUs that this process may use, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name for name in visible.split(",") if name.strip() and name.strip() != "-1")
    return tuple(sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")))


def gpu_name() -> str | None:
    """Name of this machine's GPUs as torch prints it, without loading torch; None where they differ or none is seen."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    names = {line.strip() for line in said.splitlines() if line.strip()}
    # Which of several kinds is used depends on CUDA's own order of devices, so nothing is said of them.
    return names.pop() if len(names) == 1 else None


def gpu_bytes() -> int | None:
    """Memory of this machine's smallest GPU, without loading torch; None where none is seen."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return min((int(line) << 20 for line in said.split()), default=None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def main_memory_bytes() -> int | None:
    """Main memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def memory_kills() -> int:
    """Processes of this machine and of this container that the kernel has killed for their memory; 0 where it does not say."""
    count = 0
    for path in (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events")):
        with suppress(OSError):
            count += sum(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("oom_kill "))
    return count


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
