"""Asking Optuna for a point that was not tried yet: a pure function of the history and a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import islice, product
from typing import TYPE_CHECKING

from harness.records.codec import canonical_json
from harness.records.trial import derive_seed
from harness.search.memory import Memory, Tried
from harness.search.samplers.base import Sampler
from harness.space import Choice, Distribution, Integer, Scalar, Space, Text

if TYPE_CHECKING:
    pass

_SAMPLER_TRIES = 10
"""A sampler that has converged proposes the same point again and again."""
_RANDOM_TRIES = 100
_LISTABLE = 100_000
"""Largest discrete space that is listed in full to find what is left of it."""


class Asker:
    """Asks for one point after the other of a history that grows.

    The answer is a function of the history and the seed alone. What is kept from one question to the next is the Optuna
    study of the history, since to build it for each question would take the longer the more was tried.
    """

    def __init__(self, space: Space, sampler: Sampler) -> None:
        """Take what stays the same.

        Args:
            space: What is searched; may be empty, then it has one point.
            sampler: Proposes; is made anew for every try.
        """
        self.space, self.sampler = space, sampler
        self._memory: Memory | None = None  # made where it is needed: Optuna takes time to import

    def ask(self, tried: Tried, names: Sequence[str | int]) -> dict[str, Scalar] | None:
        """A point that was not tried, or None when the space has no other.

        The sampler gets ten tries, then uniform draws a hundred, then what is left of a discrete space is listed.

        Args:
            tried: Everything tried before.
            names: What the seed is derived from (study seed, cell, trial number).
        """
        if self._memory is None or not self._memory.follow(tried):
            self._memory = Memory(self.space, tried)
        memory = self._memory
        if len(memory.seen) >= size(self.space):
            return None
        try:
            for attempt in range(_SAMPLER_TRIES):  # each has a seed of its own, or all would propose the same
                point = memory.propose(self.sampler.create(derive_seed(*names, attempt)))
                if canonical_json(point) not in memory.seen:
                    return point
        finally:
            memory.rewind()
        return _unseen(self.space, memory.seen, random.Random(derive_seed(*names, "fallback")))


def size(space: Space) -> float:
    """Number of points of a space; infinite if it has a real-valued parameter with a width."""
    return math.prod(len(points) if (points := _points(d)) else math.inf for d in space.values())


def _unseen(space: Space, seen: set[str], rng: random.Random) -> dict[str, Scalar] | None:
    for _ in range(_RANDOM_TRIES):
        point = {name: distribution.sample(rng) for name, distribution in space.items()}
        if canonical_json(point) not in seen:
            return point
    if size(space) > _LISTABLE:  # hundreds of draws found nothing new: practically all of it was tried
        return None
    grid = (dict(zip(space, values, strict=True)) for values in product(*(_points(d) for d in space.values())))
    left = [point for point in islice(grid, _LISTABLE) if canonical_json(point) not in seen]
    return rng.choice(left) if left else None


def _points(distribution: Distribution) -> Sequence[Scalar]:
    if isinstance(distribution, Text):
        return [distribution.default]
    if isinstance(distribution, Choice):
        return list(dict.fromkeys(distribution.choices))
    if isinstance(distribution, Integer):
        return range(distribution.low, distribution.high + 1)
    return [distribution.low] if distribution.low == distribution.high else []
