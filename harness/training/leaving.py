"""When a process is asked to leave while it trains: it ends the optimiser step, saves, and leaves.

A scheduler announces the end of a job by a signal. The handler (`ask`) is the worker's, who saves is whoever trains.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_S = 2.0
"""A signal that follows another one sooner than this is the same request: schedulers tell both a job and its steps."""


class _State:
    """What one process was asked; signals reach its main thread, which is the one that trains."""

    heeding = False
    number: int | None = None
    since = 0.0


_state = _State()


def ask(number: int, frame: FrameType | None = None) -> None:
    """End the process: at once, or after what saves it where it is in `heeded`; a second signal there ends it at once.

    Args:
        number: Of the signal; the exit status is 128 more.
        frame: What it interrupted.
    """
    first, _state.number = _state.number is None, number
    if first:
        _state.since = time.monotonic()
    if not _state.heeding or (not first and time.monotonic() - _state.since > ECHO_S):
        raise SystemExit(128 + number)


def asked() -> bool:
    """Whether the process shall leave."""
    return _state.number is not None


def leave() -> None:
    """End the process if it was asked to."""
    if _state.number is not None:
        raise SystemExit(128 + _state.number)


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, a signal is only noted: the code looks at `asked`, saves, and calls `leave`."""
    _state.heeding = True
    try:
        yield
    finally:
        _state.heeding = False
    leave()  # a signal may have come after the last look


@contextmanager
def unheeded() -> Iterator[None]:
    """Inside, within `heeded`, a signal raises `SystemExit` at once: for what takes long and can be done again."""
    _state.heeding = False
    try:
        leave()  # a signal may have come after the last look
        yield
    finally:
        _state.heeding = True
