"""What a verb costs before it does anything: CPU seconds of each, in a copy of the project, beside bare imports.

Run: python benchmarks/startup.py
The first plan reads rows and builds models without memory; what it found is kept under `results/cache`, so that the second
loads no torch.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
HARNESS = (sys.executable, "-m", "harness.cli.main")
COMMANDS = {
    "python, doing nothing": (sys.executable, "-c", "pass"),
    "import torch, transformers": (sys.executable, "-c", "import torch, transformers.models.llama"),
    "harness --help": (*HARNESS, "--help"),
    "harness list methods": (*HARNESS, "list", "methods"),
    "harness plan quickstart": (*HARNESS, "plan", "quickstart"),
    "the same again": (*HARNESS, "plan", "quickstart"),
    "harness status": (*HARNESS, "status"),
}


def cpu_seconds(command: tuple[str, ...], folder: Path) -> float:
    """CPU time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """One line for each command."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(REPOSITORY / "studies", folder / "studies")
        for name, command in COMMANDS.items():
            print(f"{name:28} {cpu_seconds(command, folder):6.2f} s", flush=True)


if __name__ == "__main__":
    main()
