"""One driver at a time for each study."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from harness.errors import HarnessError
from harness.records.paths import StudyPaths


@contextmanager
def locked(study: StudyPaths) -> Iterator[None]:
    """One driver per study: holds its lock while inside, on this host or on a file system shared with others.

    Raises:
        HarnessError: When another driver holds it; the message names its process and host.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with study.lock.open("a+") as file:  # neither truncated, since it may name another driver, nor required to be there
        try:
            # Ends with the process, however that ends: no lock of a killed driver has to be removed by hand.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise HarnessError(
                f"one driver at a time may run {study.name}, but {holder} does: wait or stop it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            # Emptied, not removed: another driver may hold the file open and wait for this very lock.
            file.truncate(0)
