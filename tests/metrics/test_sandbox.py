"""What a program that a model wrote can and cannot do; each program checks itself that the attempt failed as it should."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.errors import SpecError
from harness.metrics import _sandbox as sandbox
from harness.metrics._sandbox import Limits, passes, why_no_sandbox


@pytest.fixture(autouse=True)
def can_run() -> None:
    if reason := why_no_sandbox():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def attempt(code: str, error: str) -> str:
    """A program that ends well if `code` raises `error`."""
    return f"try:\n    {code}\nexcept {error}:\n    pass\nelse:\n    raise SystemExit('it worked')\n"


FORBIDDEN = {
    "connect": attempt("import socket; socket.create_connection(('127.0.0.1', 9), timeout=2)", "OSError"),
    "any network": "import socket\nassert [name for _, name in socket.if_nameindex()] == ['lo']",
    "read files": attempt("open('/etc/passwd')", "FileNotFoundError"),
    "see folders": "import os\nassert set(os.listdir('/')) <= {'usr', 'lib', 'lib64', 'tmp', 'root', 'opt', 'home'}",
    "write Python": attempt("import os; open(os.__file__, 'a')", "OSError"),
    "fork": attempt("import os; os.fork()", "PermissionError"),
    "start a program": attempt("import subprocess, sys; subprocess.run([sys.executable, '-c', ''])", "PermissionError"),
    "start a thread": attempt("import threading; threading.Thread(target=print).start()", "RuntimeError"),
    # fork by its number, and by that of the x32 interface; clone3, which says EINVAL (22) where it is let through
    "call the kernel to start processes": (
        "import ctypes, os, platform\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "calls = [(57,), (0x40000000 + 57,)] if platform.machine() == 'x86_64' else []\n"
        "for call in [*calls, (435, None, 0)]:\n"
        "    if (done := libc.syscall(*call)) == 0:\n"
        "        os._exit(0)\n"
        "    assert (done, ctypes.get_errno()) == (-1, 1), call"
    ),
    "leave by chroot": attempt("import os; os.chroot('/tmp')", "PermissionError"),
    "use much memory": attempt("'x' * (1 << 30)", "MemoryError"),
    "fill the disk": attempt("for n in range(40): open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))", "OSError"),
    "open many files": attempt("kept = [open('/tmp/a', 'w') for _ in range(40)]", "OSError"),
    "see processes": "import os\nassert os.getpid() == 1",
    "have more than its limits": (
        "import resource\nassert resource.getrlimit(resource.RLIMIT_CPU) == (5, 5)\n"
        "assert resource.getrlimit(resource.RLIMIT_AS) == (256 << 20, 256 << 20)"
    ),
    "keep capabilities": (
        "import ctypes\nhad = (ctypes.c_uint32 * 6)(*[7] * 6)\n"
        "assert ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), had) == 0 and list(had) == [0] * 6"
    ),
    "know secrets": "import os\nassert 'PATH' in os.environ and 'A_SECRET' not in os.environ",
}


@pytest.mark.parametrize("what", list(FORBIDDEN))
def test_it_cannot(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    assert passes([FORBIDDEN[what]], Limits(memory_mb=256)) == [True]


def test_it_can_compute_and_write_a_little() -> None:
    program = (
        "import collections, itertools, math, re, typing\nopen('/tmp/a', 'w').write('x')\nassert math.isqrt(9) == 3"
    )
    assert passes([program, "print('x' * 1000000)"]) == [True, True]


def test_only_a_program_that_gets_to_its_end_passes() -> None:
    early = [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "assert False",
        "this is no Python",
        "open('/tmp/a','wb').write(b'x' * (2 << 20))",
    ]
    assert passes([*early, "pass"]) == [False] * len(early) + [True]


# Writes all that it finds to all files, without knowing which file is listened to.
SPREAD = (
    "import os, sys\ndef spread(*found):\n    for handle in range(3, 16):\n        for each in found:\n            try:\n"
    "                os.write(handle, each if isinstance(each, bytes) else str(each).encode())\n"
    "            except OSError:\n                pass\n    os._exit(0)\n"
)
FORGED = {
    "every value of every frame": (
        f"{SPREAD}frame, found = sys._getframe(), []\nwhile frame:\n"
        "    found += [*frame.f_locals.values(), *frame.f_globals.values()]\n    frame = frame.f_back\nspread(*found)"
    ),
    "every text that is known": f"{SPREAD}import gc\nspread(*[v for v in gc.get_objects() if isinstance(v, str | bytes)])",
    "what waits in the pipe": f"{SPREAD}spread(os.read(0, 16))",
    "the same, through another name": f"{SPREAD}spread(sys.stdin.buffer.read(16))",
    "in place of an error": f"{SPREAD}sys.excepthook = lambda *error: spread(os.read(0, 16))\nassert False",
    "when the interpreter ends": f"{SPREAD}import atexit\natexit.register(lambda: spread(os.read(0, 16)))\nassert False",
    "an error that is none": (
        f"{SPREAD}import builtins\nbuiltins.AssertionError = lambda *a: spread(os.read(0, 16))\nraise AssertionError"
    ),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_end_is_no_end(how: str) -> None:
    """Those that read the pipe get their answer out, so that it is the second run that finds them."""
    assert passes([FORGED[how]]) == [False]


def test_half_a_character_is_no_program() -> None:
    assert passes(["x = '\ud800'", "x = '\udcff'", "x = '\u00e9'"]) == [False, False, True]


def test_time_is_limited() -> None:
    start = time.monotonic()
    assert passes(["while True: pass", "import time; time.sleep(60)"], Limits(seconds=1)) == [False, False]
    assert time.monotonic() - start < 20


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    passes(["open('/tmp/a', 'w').write('x')", "while True: pass"], Limits(seconds=1))
    assert list(tmp_path.iterdir()) == []


def test_a_sandbox_that_does_not_start_is_no_failed_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_UNSHARE", ("--no-such-option",))
    with pytest.raises(RuntimeError, match="unrecognized option"):
        passes(["pass"])
    sandbox.why_no_sandbox.cache_clear()
    with pytest.raises(SpecError, match="must run in a sandbox, but this machine does not let it start"):
        passes(["pass"])
    sandbox.why_no_sandbox.cache_clear()
