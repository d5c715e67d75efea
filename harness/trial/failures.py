"""What ends a trial: a score that is not finite, memory that was refused, and everything else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.errors import Diverged, HarnessError
from harness.records.trial import TrialStatus

if TYPE_CHECKING:
    from harness.evaluation.evaluate import Evaluated


def require_score(outcome: Evaluated | Diverged) -> Evaluated:
    """A score that is finite.

    Raises:
        Diverged: When it is not.
    """
    if isinstance(outcome, Diverged):
        raise outcome
    score = outcome.score
    if not math.isfinite(score.value):
        raise Diverged(f"{score.metric} of {score.task} became {score.value}: lower the learning rate")
    return outcome


def status_of(error: Exception) -> TrialStatus:
    """Out of memory or crashed; errors that are a user's or a disk's to mend are raised again.

    Raises:
        HarnessError: The error itself, when it is one.
    """
    if isinstance(error, HarnessError):
        raise error
    return TrialStatus.OUT_OF_MEMORY if out_of_memory(error) else TrialStatus.CRASHED


def out_of_memory(error: Exception) -> bool:
    """Whether memory was refused; torch's CPU allocator raises a plain RuntimeError."""
    from torch import OutOfMemoryError

    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return refused or isinstance(error, OutOfMemoryError | MemoryError)
