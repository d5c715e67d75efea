"""The author's contract for a scheduler: how far each trial goes.

One file per scheduler; its stem is its name in study files. A rung is a fidelity at which trials stop and are
compared; going on to the next rung is a job of its own, which resumes from the checkpoint that the last one left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.axes.contract import Plugin
from harness.study.spec import Search


@dataclass(frozen=True)
class Rung:
    """What is known at one fidelity of one cell."""

    fidelity: float
    values: Mapping[int, float | None]
    """Of the trials that finished here, by number: their score (larger is better), None for a failure."""
    promoted: frozenset[int]
    """Numbers that already went on to the next rung."""


@dataclass(frozen=True)
class Promotion:
    """Trial `number` goes on to the rung with index `rung`."""

    number: int
    rung: int


class Scheduler(Plugin, ABC):
    """Decides at which fidelities trials stop, and which of them go on."""

    @abstractmethod
    def rungs(self, search: Search) -> tuple[float, ...]:
        """Fidelities in rising order; the last is 1."""

    def promote(self, rungs: Sequence[Rung], search: Search) -> Promotion | None:
        """The next trial to go on, or None; must depend on its arguments only, so that a restart decides alike.

        Args:
            rungs: What is known at every fidelity, rising.
            search: The study's search settings.
        """
        return None
