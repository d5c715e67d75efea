"""Runs Python programs that nobody has read: without network, without this machine's files, with little time and memory.

A program gets namespaces of its own (users, mounts, processes, network), a file system that holds Python and nothing else,
no capabilities, no further processes, and limits on CPU time, memory and what it writes. That needs Linux with unprivileged user namespaces
and util-linux's `unshare`; elsewhere nothing is run.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.errors import SpecError

_UNSHARE = ("--user", "--map-root-user", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child")
_SHELL = """set -eu
root=$1 python=$2; shift 2
mount -t tmpfs -o size=16m none "$root"
for folder in "$@"; do
  mkdir -p "$root$folder"
  if [ -L "$folder" ]; then rmdir "$root$folder"; ln -s "$(readlink "$folder")" "$root$folder"; continue; fi
  mount --bind "$folder" "$root$folder"
  mount -o remount,bind,ro "$root$folder"
done
mkdir -p "$root/tmp"
exec chroot "$root" "$python" -I -S -B -c "$PROLOGUE"
"""
_PROLOGUE = """
import ctypes, os, platform, resource, struct, sys
cpu, memory, size = os.read(0, 48).split()
source = b''
while len(source) < int(size):
    source += os.read(0, int(size) - len(source))
limits = {resource.RLIMIT_CPU: int(cpu), resource.RLIMIT_AS: int(memory), resource.RLIMIT_FSIZE: 1 << 20,
          resource.RLIMIT_NOFILE: 32, resource.RLIMIT_CORE: 0, resource.RLIMIT_NPROC: 16}
libc = ctypes.CDLL(None, use_errno=True)
for capability in range(64):
    libc.prctl(24, capability, 0, 0, 0)
libc.prctl(38, 1, 0, 0, 0)
if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
    raise OSError(ctypes.get_errno(), 'capset')
known = {'x86_64': (0xC000003E, (56, 57, 58, 435, 165, 272)), 'aarch64': (0xC00000B7, (220, 435, 40, 97))}
arch, calls = known[platform.machine()]
tests = [(0x20, 0, 0, 4), (0x15, 1, 0, arch), (6, 0, 0, 0x80000000)]
tests += [(0x20, 0, 0, 0), (0x35, len(calls) + 1, 0, 0x40000000)]
tests += [(0x15, len(calls) - number, 0, call) for number, call in enumerate(calls)]
tests += [(6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50001)]
rules = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *test) for test in tests))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(tests), ctypes.addressof(rules)))
if libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(program)), 0, 0):
    raise OSError(ctypes.get_errno(), 'seccomp')
for name, value in limits.items():
    resource.setrlimit(name, (value, value))
answer = os.dup(1)
os.dup2(2, 1)
os.chdir('/tmp')
os.write(answer, b'ready')
exec(compile(source.decode(), 'program', 'exec'), {'__name__': '__main__'})
sys.stdout.flush()
os.write(answer, os.read(0, 16))
"""
"""Drops every capability (24: PR_CAPBSET_DROP, 38: PR_SET_NO_NEW_PRIVS), forbids to start processes and threads, to mount
and to unshare (22: PR_SET_SECCOMP; the calls' numbers by processor), sets limits, runs the program, and only then passes on
what waits in its pipe: while a program runs, nothing in its interpreter holds what would say that it got to its end."""
_DECOY = "\nraise AssertionError"
"""What an honest program with this line behind it does not get beyond."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 5.0
    """Of CPU time, rounded up; of wall time three times as much, since other work may slow it down."""
    memory_mb: int = 512


def passes(programs: Sequence[str], limits: Limits = Limits()) -> list[bool]:
    """Whether each program runs to its end without an error, within its limits.

    A program is judged from outside, by 16 random bytes that come back when it has ended. One that passes runs a second time with a
    line behind it that must fail: one that passes then, too, forges its result, in whatever way, and has not passed.
    Whatever shares an interpreter with its own tests can still forge, if it looks for that line: as a reward this is for
    models that do not know this file.

    Args:
        programs: Sources in Python.
        limits: Of each.

    Returns:
        One answer per program, in their order.

    Raises:
        SpecError: When this machine cannot shut a program in.
    """
    if reason := why_no_sandbox():
        raise SpecError(f"programs that a model wrote must run in a sandbox, but {reason}")
    with ThreadPoolExecutor(max_workers=max(1, min(len(programs), os.cpu_count() or 1))) as pool:
        return list(pool.map(lambda program: _run(program, limits) and not _run(program + _DECOY, limits), programs))


@cache
def why_no_sandbox() -> str | None:
    """Why programs cannot be shut in on this machine, or None; a program is run to find out."""
    if not (sys.platform == "linux" and shutil.which("unshare")):
        return "this machine has no unshare: it needs Linux with util-linux"
    try:
        _run("pass", Limits())
    except RuntimeError as error:
        return f"this machine does not let it start ({error}): allow unprivileged user namespaces"
    return None


def _run(program: str, limits: Limits) -> bool:
    try:
        source = program.encode()
    except UnicodeEncodeError:
        return False  # half a character is no Python
    token = secrets.token_bytes(16)
    header = f"{max(1, -int(-limits.seconds // 1))} {limits.memory_mb << 20} {len(source)}".ljust(48).encode()
    with tempfile.TemporaryDirectory() as root:
        command = ["unshare", *_UNSHARE, "sh", "-c", _SHELL, "sh", root, *_python()]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PROLOGUE": _PROLOGUE, "LANG": "C.UTF-8"}
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            told, complaint = child.communicate(header + source + token, timeout=3 * limits.seconds + 5)
        except subprocess.TimeoutExpired:
            child.kill()  # the first process of its namespace goes with it, and so do all others
            child.communicate()
            return False
    if not told.startswith(b"ready"):
        # The sandbox itself did not start: that is this machine's fault and not the program's.
        words = " ".join(complaint.decode(errors="replace").split())
        raise RuntimeError(words[:200] or f"it ended with code {child.returncode}")
    return told == b"ready" + token


def _python() -> list[str]:
    """The interpreter outside any virtual environment, and the folders that it needs.

    A virtual environment would bring its packages, which a generated program has no need of.
    """
    prefix = Path(sys.base_prefix).resolve()
    binary = prefix / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = [Path("/usr/lib"), Path("/usr/lib64"), Path("/lib"), Path("/lib64"), prefix / "bin", prefix / "lib"]
    return [str(binary), *dict.fromkeys(str(folder) for folder in folders if folder.exists())]
