"""`harness` commands in processes of their own that need not import torch again: forks of one that has.

Importing the libraries takes a command seconds, and tests run a hundred commands. What else a fresh process has is
there: its own environment, folder, output and exit code. Snakemake and the documents' commands start from nothing.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from tests.patience import PATIENCE_S

LIBRARIES = ["harness.cli.main", "lm_eval.tasks", "peft", "torch", "transformers", "trl", "duckdb", "optuna"]


@cache
def _server():
    server = get_context("forkserver")
    server.set_forkserver_preload(LIBRARIES)
    return server


def run(
    arguments: tuple[str, ...],
    folder: Path,
    environment: dict[str, str],
    output: Path,
    read_only: tuple[Path, ...] = (),
) -> subprocess.CompletedProcess:
    """Run `harness` with these arguments.

    Args:
        arguments: What stands behind `harness` on the command line.
        folder: Where it runs.
        environment: Its environment variables, all of them.
        output: A folder for what it prints.
        read_only: Folders that the command cannot write to.
    """
    code, *printed = call(_command, (arguments, folder, environment, read_only), output)
    return subprocess.CompletedProcess(["harness", *arguments], code, *printed)


def call(function: Callable[..., object], arguments: tuple[object, ...], output: Path) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a function of a module, called in a process of its own.

    Args:
        function: What is called.
        arguments: With what.
        output: A folder for what it prints.
    """
    streams = output / "stdout", output / "stderr"
    process = _server().Process(target=_called, args=(function, arguments, streams))
    process.start()
    process.join(PATIENCE_S)
    if process.is_alive():
        process.kill()
        raise subprocess.TimeoutExpired(str(arguments), PATIENCE_S)
    return (process.exitcode, *(path.read_text() for path in streams))


def _called(function, arguments, streams):
    for path, stream in zip(streams, (sys.stdout, sys.stderr), strict=True):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    function(*arguments)


def _command(arguments, folder, environment, read_only):
    os.environ.clear()
    os.environ.update(environment)
    make_read_only(read_only)
    os.chdir(folder)
    sys.argv = ["harness", *arguments]
    from harness.cli.main import main

    main()


NO_MOUNTS = 99
"""Exit code where this machine lets nobody mount a folder read-only."""


def make_read_only(folders: tuple[Path, ...]) -> None:
    """Mount folders read-only for this process and its children; permissions would not hold root up."""
    private, bind, remount, recursive, only_read = 1 << 18, 1 << 12, 1 << 5, 1 << 14, 1
    new_mounts, new_user = 0x20000, 0x10000000
    libc, user = ctypes.CDLL(None, use_errno=True), os.getuid()
    if folders and libc.unshare(new_mounts) and not libc.unshare(new_mounts | new_user):
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    steps = [(b"none", b"/", private | recursive)] if folders else []
    for place in (bytes(folder) for folder in folders):
        steps += [(place, place, bind), (b"none", place, bind | remount | only_read)]
    if any(libc.mount(source, target, None, flags, None) for source, target, flags in steps):
        os._exit(NO_MOUNTS)
