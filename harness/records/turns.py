"""One process at a time: whoever comes second waits for its turn, and what the first left undone it does."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from harness.errors import StorageError

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 5.0
"""Between two tries for a lock; the first ones follow each other more quickly."""


@contextmanager
def my_turn(lock: Path, work: str) -> Iterator[None]:
    """Hold a lock file while inside, on this host or on a file system shared with others.

    The lock ends with its process, however that ends: nobody has to remove one of a process that was killed.

    Args:
        lock: The file; it stays, and is empty when nobody holds the lock.
        work: What one process at a time may do, as the end of "process 7 on host ...", for those who wait.

    Raises:
        StorageError: When the file cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+")  # not truncated, since it may name another process
    except OSError as error:
        raise StorageError(
            f"{error.filename or lock} could not be written ({error.strerror}): fix permissions or free space"
        ) from error
    with file:
        _wait_for(file, work)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # emptied, not removed: another process may hold the file open and wait for this very lock


def _wait_for(file: IO[str], work: str) -> None:
    for attempt in count():
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt == 0:
                file.seek(0)
                log.warning("%s %s: this command goes on when that has ended", file.read() or "another process", work)
            time.sleep(min(_LONGEST_PAUSE_S, 0.1 * 1.5**attempt))
        else:
            return
