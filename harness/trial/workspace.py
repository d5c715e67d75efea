"""What a trial is told about the place where it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from harness.records.paths import Paths
from harness.study.spec import Prices


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
    together: int = 8
    """Trials that train together at most."""
    study: str = ""
    """The study whose trials these are, for their records; empty for none."""
    corpora: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Name of a base model to the corpus that the study gives for it."""
