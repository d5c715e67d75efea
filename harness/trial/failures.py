"""What ends a trial, and what makes trials run apart: values that the step which meets them returns."""

from __future__ import annotations

import math
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError, TrialFailure, describe, redact
from harness.files import write_atomically
from harness.records.trial import Ended, TrialStatus

if TYPE_CHECKING:
    from harness.evaluation.evaluate import ScoreOutcome


@dataclass(frozen=True)
class Split:
    """Trials cannot go on together: they start again in smaller groups."""

    reason: str
    in_halves: bool = False
    """Two halves may do, since only memory was missing; otherwise each trial runs alone."""


def ended_by(error: Exception, traceback_file: Path) -> Ended:
    """How an error ends its trial.

    Args:
        error: What was raised.
        traceback_file: Where the traceback of an error that nobody foresaw is written.
    """
    if isinstance(error, SpecError | TrialFailure):  # the study goes on: other choices may do
        return Ended(TrialStatus.CRASHED, str(error))
    write_atomically(traceback_file, redact("".join(traceback.format_exception(error))))
    return Ended(TrialStatus.OUT_OF_MEMORY if out_of_memory(error) else TrialStatus.CRASHED, describe(error))


def finite(outcome: ScoreOutcome) -> ScoreOutcome:
    """The score itself, or the end of its trial where it is not finite."""
    if isinstance(outcome, Ended) or math.isfinite(outcome.score.value):
        return outcome
    score = outcome.score
    reason = f"{score.metric} of {score.task} became {score.value}: lower the learning rate"
    return Ended(TrialStatus.DIVERGED, reason)


def out_of_memory(error: Exception) -> bool:
    """Whether memory was refused; torch's CPU allocator raises a plain RuntimeError."""
    from torch import OutOfMemoryError

    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return refused or isinstance(error, OutOfMemoryError | MemoryError)
