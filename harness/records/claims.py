"""Which process runs a trial: a claim beside its record, so that no trial runs in two places at a time.

A claim is a kernel lock on a file in the trial's folder. The lock is its own heartbeat: it lasts as long as its process
and ends with it, however that ends, so that no clock has to be trusted and no claim of a dead owner has to expire. Over
NFS the server ends it with the lease of a node that it lost. Nobody holds a claim while it waits for another one, so that
there is no deadlock. `tests/records/test_claims.py` tries all orders of what several processes may do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.records.paths import Paths
from harness.records.turns import opened, try_lock


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
        handle = opened(path)
        if not try_lock(handle, path):
            os.close(handle)
            return None
        if _is(handle, path):
            return handle
        os.close(handle)  # its owner removed the file between opening and locking: the lock is on nothing


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _release(path: Path, handle: int) -> None:
    path.unlink(missing_ok=True)  # while it is locked: whoever has it open sees that it is gone, and tries again
    os.close(handle)
