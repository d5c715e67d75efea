"""The author's contract for a sampler: which point of the space is tried next.

One file per sampler; its stem is its name in study files. The driver makes a new one for every question, seeded by
hashing the study, the cell and the trial's number: the same history always gets the same answer, restarted or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from harness.axes.contract import Plugin

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Sampler(Plugin, ABC):
    """Proposes points of a search space."""

    independent: ClassVar[float] = 1
    """Trials of a cell, the first on, whose points depend on no result: these may start together."""

    @abstractmethod
    def create(self, seed: int) -> BaseSampler:
        """An Optuna sampler that draws from `seed` alone; it is asked once."""
