"""Asking Optuna for a point that was not tried yet: a pure function of the history and a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import TYPE_CHECKING

from harness.records.codec import canonical_json
from harness.records.trial import derive_seed
from harness.search.samplers.base import Sampler
from harness.space import Choice, Distribution, Integer, Scalar, Space, Text

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

_SAMPLER_TRIES = 10
"""A sampler that has converged proposes the same point again and again."""
_RANDOM_TRIES = 100
_LISTABLE = 100_000
"""Largest discrete space that is listed in full to find what is left of it."""


@dataclass(frozen=True)
class Observation:
    """One tried point."""

    params: Mapping[str, Scalar]
    value: float | None
    """Score, larger is better; None for a failure or while it runs."""
    running: bool = False


def ask(
    space: Space, history: Sequence[Observation], sampler: Sampler, names: Sequence[str | int]
) -> dict[str, Scalar] | None:
    """A point that is not in `history`, or None when the space has no other.

    The sampler gets ten tries, then uniform draws a hundred, then what is left of a discrete space is listed.

    Args:
        space: What is searched; may be empty, then it has one point.
        history: Everything tried before, in the order it was asked.
        sampler: Proposes; is made anew for every try.
        names: What the seed is derived from (study seed, cell, trial number).
    """
    seen = {canonical_json(observation.params) for observation in history}
    if len(seen) >= size(space):
        return None
    study = _study(space, history)
    distributions = {name: optuna_distribution(d) for name, d in space.items()}
    for attempt in range(_SAMPLER_TRIES):  # each has a seed of its own, or all would propose the same
        point = _try(study, sampler, derive_seed(*names, attempt), distributions)
        if canonical_json(point) not in seen:
            return point
    return _unseen(space, seen, random.Random(derive_seed(*names, "fallback")))


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


def _study(space: Space, history: Sequence[Observation]) -> Study:
    """The history as an Optuna study in memory, always maximising."""
    import optuna
    from optuna.trial import TrialState, create_trial

    # Optuna logs every trial at level INFO.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    distributions = {name: optuna_distribution(d) for name, d in space.items()}
    for seen in history:
        state = TrialState.RUNNING if seen.running else TrialState.FAIL if seen.value is None else TrialState.COMPLETE
        value = seen.value if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, params=dict(seen.params), distributions=distributions))
    return study


def _try(study: Study, sampler: Sampler, seed: int, distributions: Mapping[str, BaseDistribution]) -> dict[str, Scalar]:
    from optuna.trial import TrialState

    study.sampler = sampler.create(seed)
    trial = study.ask(dict(distributions))
    study.tell(trial, state=TrialState.FAIL)  # a refused point must not look like one that runs
    return dict(trial.params)


def optuna_distribution(distribution: Distribution) -> BaseDistribution:
    """The same range in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, Text):
        return CategoricalDistribution([distribution.default])
    if isinstance(distribution, Choice):
        return CategoricalDistribution(distribution.choices)
    if isinstance(distribution, Integer):
        return IntDistribution(distribution.low, distribution.high, log=distribution.log)
    return FloatDistribution(distribution.low, distribution.high, log=distribution.log)
