"""What is expected of candidates: one calibrated surrogate each for gain, forgetting, seconds and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from harness.plugins import load
from harness.recommend.conformal import COVERAGE, Conformal
from harness.recommend.features import Candidate, Encoder, Observation, describe, of_one_kind
from harness.recommend.lessons import completed, lessons
from harness.recommend.surrogates.base import Prediction, Surrogate

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Target:
    """A quantity to predict."""

    of: Callable[[Observation], float | None]
    log: bool = False
    """Whether it is learned in its logarithm, being positive and spread over orders of magnitude."""


TARGETS = {
    "gain": Target(lambda o: o.gain),
    "forgetting": Target(lambda o: o.forgetting),
    "seconds": Target(lambda o: o.seconds, log=True),
    "memory_bytes": Target(lambda o: o.memory_bytes, log=True),
}

SLACK = 1e-9
"""Relative tolerance at the ends of an interval."""


class Outlook:
    """Surrogates of all targets of which there are observations."""

    def __init__(
        self,
        seen: Sequence[Observation],
        surrogate: str,
        targets: Sequence[str] = tuple(TARGETS),
        shares: bool = True,
        calibrated: bool = True,
    ) -> None:
        """Fit them.

        Args:
            seen: What is known.
            surrogate: Its name.
            targets: What to predict.
            shares: Whether forgetting is that of shares (accuracies), or that of losses; the other kind is left out.
            calibrated: Whether intervals are calibrated on tasks left out, which takes several fits for each target.
        """
        self.seen = seen = lessons(of_one_kind(seen, shares))
        described = [describe(observation.candidate) for observation in seen]
        self.encoder = Encoder.fit(described)
        self.rows = self.encoder.transform(described)
        kind: type[Surrogate] = load("recommend/surrogates", surrogate)
        make = partial(kind, self.encoder.columns)
        self._models: dict[str, Conformal] = {}
        # A mean cannot tell rungs from full runs, so a baseline learns from full runs only.
        usable = np.array([o.candidate.fidelity == 1 or not kind.baseline for o in seen], dtype=bool)
        for name in targets:
            values = target_values(seen, name)
            if name == "gain" and np.isnan(values).any():
                values = completed(seen, partial(self._expected, make(), values, usable))
            learnable = ~np.isnan(values) & usable
            if learnable.any():
                self._models[name] = Conformal(make)
                tasks = [observation.task for observation, keep in zip(seen, learnable, strict=True) if keep]
                self._models[name].fit(self.rows[learnable], values[learnable], tasks if calibrated else ())

    def _expected(
        self, model: Surrogate, values: NDArray[np.float64], usable: NDArray[np.bool_], own: Sequence[int]
    ) -> NDArray[np.float64]:
        """What is expected of some lessons by the values that are known; the mean of these where none can be learned from."""
        learnable = ~np.isnan(values) & usable
        if not learnable.any():
            return np.full(len(own), np.nanmean(values))
        model.fit(self.rows[learnable], values[learnable])
        return model.predict(self.rows[list(own)], COVERAGE).mean

    @property
    def targets(self) -> tuple[str, ...]:
        """What it can predict."""
        return tuple(self._models)

    def predict(self, candidates: Sequence[Candidate]) -> dict[str, Prediction]:
        """By target, in its own unit (gain as share of the room)."""
        rows = self.encoder.transform([describe(candidate) for candidate in candidates])
        return {name: _unlogged(model.predict(rows), TARGETS[name]) for name, model in self._models.items()}


def target_values(seen: Sequence[Observation], name: str) -> NDArray[np.float64]:
    """A target as the surrogates learn it.

    Args:
        seen: n observations.
        name: Of the target.

    Returns:
        Shape (n,), logarithms where the target says so; NaN where a value is unknown.
    """
    target = TARGETS[name]
    values = np.array([np.nan if (value := target.of(o)) is None else float(value) for o in seen])
    # The inner `where` keeps log from warning about values that the outer one drops.
    return np.where(values > 0, np.log(np.where(values > 0, values, 1)), np.nan) if target.log else values


def covered(
    predicted: Mapping[str, Prediction], seen: Sequence[Observation], shares: bool = True
) -> dict[str, list[bool]]:
    """Whether what came of candidates lies in the intervals that were predicted.

    Args:
        predicted: By target, intervals for n candidates.
        seen: The n candidates as observations.
        shares: Which kind of forgetting counts, as `Outlook` takes it.

    Returns:
        By target, one answer for each observation that has the value.
    """
    seen = of_one_kind(seen, shares)
    hits: dict[str, list[bool]] = {}
    for name, prediction in predicted.items():
        values = [TARGETS[name].of(observation) for observation in seen]
        ends = zip(values, prediction.low, prediction.high, strict=True)
        # Values that went through a logarithm and back may miss their own interval by a rounding error.
        hits[name] = [
            bool(low - SLACK * abs(low) <= value <= high + SLACK * abs(high))
            for value, low, high in ends
            if value is not None
        ]
    return hits


def _unlogged(prediction: Prediction, target: Target) -> Prediction:
    if not target.log:
        return prediction
    return Prediction(np.exp(prediction.mean), np.exp(prediction.low), np.exp(prediction.high))
