"""Locks between processes: whoever comes second waits for its turn, and what the first left undone it does.

A lock is the kernel's. It lasts as long as its process and ends with it, however that ends: nobody has to remove one of a
process that was killed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from harness.errors import StorageError

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 5.0
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system answers that knows no locks, as Lustre does unless it is mounted with `flock`."""


@contextmanager
def my_turn(path: Path, work: str) -> Iterator[None]:
    """Hold a lock while inside, on this host or on a file system shared with others.

    Args:
        path: The locked file; it stays, and is empty when nobody holds the lock.
        work: What one process at a time may do, as the end of "process 7 on host ...", for those who wait.

    Raises:
        StorageError: When the file cannot be written or locked.
    """
    handle = opened(path)
    try:
        for waited, pause in enumerate(pauses()):
            if try_lock(handle, path):
                break
            if waited == 0:
                holder = os.pread(handle, 200, 0).decode(errors="replace") or "another process"
                log.warning("%s %s: this command goes on when that has ended", holder, work)
            time.sleep(pause)
        _sign(handle, f"process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        finally:
            _sign(
                handle, ""
            )  # emptied, not removed: another process may hold the file open and wait for this very lock
    finally:
        os.close(handle)


def opened(path: Path) -> int:
    """A file that may be locked, made where it is absent, with its folder; not truncated, since it may name its owner.

    Raises:
        StorageError: When the file system refuses.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # somebody removed the empty folder in between
            continue
        except OSError as error:
            raise StorageError(
                f"{path} could not be written ({error.strerror}): free space or fix permissions, then run again"
            ) from error


def try_lock(handle: int, path: Path) -> bool:
    """Whether this process has a lock now; True, and said once, where the file system has none.

    Args:
        handle: The open file.
        path: Its path, for messages.

    Raises:
        StorageError: When the file system refuses for another reason.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise StorageError(f"{path} could not be locked ({error.strerror}): mount it with locks") from error
        _warn(error.strerror)
    return True


def pauses() -> Iterator[float]:
    """Seconds between looks at what another process does: ever longer, up to five, without an end."""
    pause = 0.1
    while True:
        yield pause
        pause = min(_LONGEST_PAUSE_S, 1.5 * pause)


def _sign(handle: int, owner: str) -> None:
    """Name the owner in a locked file, for whoever waits; a full disk is no reason not to work."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, owner.encode(), 0)


@cache
def _warn(reason: str) -> None:
    """Say it once for each process."""
    log.warning("the results folder has no locks (%s): two commands at once may do the same work twice", reason)
