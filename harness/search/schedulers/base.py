"""The author's contract for a scheduler: how far each trial goes.

One file per scheduler; its stem is its name in study files. A rung is a fidelity at which trials stop and are
compared; going on to the next rung is a job of its own, which resumes from the checkpoint that the last one left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from harness.axes.contract import Plugin
from harness.study.spec import Search


@dataclass(frozen=True)
class Rung:
    """What is known at one fidelity of one cell."""

    fidelity: float
    values: dict[int, float | None]
    """Of the trials that finished here, by number: their score (larger is better), None for a failure."""
    promoted: Set[int]
    """Numbers that already went on to the next rung."""
    ranking: list[tuple[float, int]] = field(init=False)
    """Minus the score, and the number, of each trial with a score: the best first, the earlier of equals first."""

    def __post_init__(self) -> None:
        """Rank what is there."""
        ranking = sorted((-value, number) for number, value in self.values.items() if value is not None)
        object.__setattr__(self, "ranking", ranking)

    def add(self, number: int, value: float | None) -> None:
        """Enter a trial that finished here.

        Args:
            number: Of the trial.
            value: Its score, larger is better; None for a failure.
        """
        self.values[number] = value
        if value is not None:
            insort(self.ranking, (-value, number))


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
