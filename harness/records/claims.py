"""Which process runs a trial: a claim beside its record, so that no trial runs in two places at a time.

A claim is a kernel lock on a file in the trial's folder. The lock is its own heartbeat: it lasts as long as its process
and ends with it, however that ends, so that no clock has to be trusted and no claim of a dead owner has to expire. Over
NFS the server ends it with the lease of a node that it lost. Nobody holds a claim while it waits for another one, so that
there is no deadlock. `tests/records/test_claims.py` tries all orders of what several processes may do.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from harness.errors import StorageError
from harness.records.paths import Paths

log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system answers that knows no locks, as Lustre does unless it is mounted with `flock`."""


@contextmanager
def claimed(paths: Paths, keys: Sequence[str]) -> Iterator[list[str]]:
    """Claim trials while inside; those that another process has are left out.

    Whoever gets a claim looks for the record again: the process that had it may have written one.

    Args:
        paths: Where trials lie.
        keys: Of the trials; none of them twice.

    Raises:
        StorageError: When a file cannot be written.
    """
    held: dict[str, int] = {}
    try:
        for key in keys:
            if (handle := _claim(paths.claim(key))) is not None:
                held[key] = handle
        yield list(held)
    finally:
        for key, handle in held.items():
            _release(paths.claim(key), handle)


def _claim(path: Path) -> int | None:
    """Lock a trial's file; None where another process has it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # somebody removed the empty folder in between
            continue
        except OSError as error:
            raise StorageError(
                f"{path} could not be written ({error.strerror}): free space or fix permissions, then run again"
            ) from error
        if not _lock(handle, path):
            os.close(handle)
            return None
        if _is(handle, path):
            return handle
        os.close(handle)  # its owner removed the file between opening and locking: the lock is on nothing


def _lock(handle: int, path: Path) -> bool:
    """Whether this process has the lock now, or the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise StorageError(f"{path} could not be locked ({error.strerror}): mount it with locks") from error
        _warn(error.strerror)
    return True


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _release(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)  # while it is locked: whoever has it open sees that it is gone, and tries again
    os.close(handle)


@cache
def _warn(reason: str) -> None:
    """Say it once for each process."""
    log.warning("the results folder has no locks (%s): two studies at once may run the same trial twice", reason)
