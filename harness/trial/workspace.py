"""What a trial is told about the place where it runs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from harness.errors import UsageError, one_line
from harness.records.paths import Paths
from harness.study.spec import Prices

CHECKPOINT_MIN = "HARNESS_CHECKPOINT_MIN"
"""Environment variable: minutes between two checkpoints in the midst of a trial; 0 for none."""


def checkpoint_seconds(minutes: float | None = None) -> float:
    """Seconds between two checkpoints in the midst of a trial; infinity for none.

    Args:
        minutes: What a site says; None for what the environment says, or a quarter of an hour.

    Raises:
        UsageError: When it is no number from 0 on.
    """
    if minutes is None:
        text = os.environ.get(CHECKPOINT_MIN, "15")
        try:
            minutes = float(text)
        except ValueError:
            minutes = math.nan
        if not minutes >= 0:
            raise UsageError(
                f"{CHECKPOINT_MIN} must be a number of minutes from 0 on, but is '{one_line(text, 60)}': correct it"
            )
    return 60 * minutes if minutes else math.inf


@dataclass(frozen=True)
class Workspace:
    """Where a trial runs and what it may leave; nothing here changes its outcome."""

    paths: Paths = field(default_factory=Paths)
    task_folders: tuple[Path, ...] = ()
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: the first GPU if there is one."""
    threads: int = 1
    """CPU threads of this process, and the cores that its price is for."""
    prices: Prices = field(default_factory=Prices)
    keep_model: bool = False
    keeps: Literal["adapter", "merged", "both"] = "merged"
    """What is left of a model that is kept, where its method can be merged."""
    keep_checkpoint: bool = False
    time_limit_s: float | None = None
    checkpoint_s: float = field(default_factory=checkpoint_seconds)
    """Seconds between two checkpoints in the midst of a trial; infinity for none but those at a signal."""
    together: int = 8
    """Trials that train together at most."""
    study: str = ""
    """The study whose trials these are, for their records; empty for none."""
    corpora: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Name of a base model to the corpus that the study gives for it."""
