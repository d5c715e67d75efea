"""A stage of a trial that will train."""

from __future__ import annotations

from dataclasses import dataclass

from harness.records.trial import Stage
from harness.training.choices import Choices


@dataclass(frozen=True)
class Ready:
    """A stage that will train: its plug-ins and its steps."""

    index: int
    stage: Stage
    chosen: Choices
    steps: int
    """Optimiser steps at full budget."""
    stop_at: int
    """Optimiser steps at the trial's fidelity."""
    is_last: bool = False
