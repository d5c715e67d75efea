"""What a finished model answered: the material of a comparison, whoever asked the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from harness.metrics.base import SHARE, guessing
from harness.records.scale import Scale


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model made of one item."""

    item: str
    """Hash of the item's row; rows that occur twice are told apart, see `told_apart`."""
    value: float
    """The metric of this item alone; NaN where it has none."""
    prompt: str
    right: str
    """The right answer, or the text that is scored."""
    given: str | None
    """The choice or text that the model gave; None where it only scored a text."""
    bits: float | None
    """Bits per byte of the right answer; None where the model only generated."""
    choices: int = 0
    """Among how many it chose; 0 where it wrote freely."""


@dataclass(frozen=True, kw_only=True)
class Skill:
    """A model's answers to one task."""

    metric: str
    higher_is_better: bool
    scale: Scale
    chance: float | None
    """The score of guessing, where somebody declared it."""
    value: float
    """The score over all items."""
    answers: tuple[Answer, ...]

    @property
    def is_right_or_wrong(self) -> bool:
        """Whether each item is."""
        return all(answer.value in (0, 1) for answer in self.answers)

    @property
    def span(self) -> Scale:
        """Between which values the metric lies; that of right and wrong needs no declaration."""
        return SHARE if self.scale == Scale() and self.is_right_or_wrong and self.higher_is_better else self.scale

    @property
    def guessing(self) -> float | None:
        """The score of guessing: as declared, else what it gives among the items' choices where each is right or wrong."""
        if self.chance is not None:
            return self.chance
        return guessing([answer.value for answer in self.answers], [answer.choices for answer in self.answers])

    @property
    def is_mean(self) -> bool:
        """Whether the score is the mean of its items."""
        values = [answer.value for answer in self.answers]
        return all(map(math.isfinite, values)) and math.isclose(fmean(values), self.value, rel_tol=1e-6, abs_tol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A finished model with its answers."""

    name: str
    skills: Mapping[str, Skill]
    """By task."""


def told_apart(hashes: Iterable[str]) -> Iterator[str]:
    """The same hashes, with a number at every one that has occurred before."""
    seen: Counter[str] = Counter()
    for own in hashes:
        yield f"{own} {seen[own]}" if seen[own] else own
        seen[own] += 1
