"""What a cell's sampler remembers: its history as an Optuna study, which follows the history and is rewound after a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, count
from operator import is_not
from typing import TYPE_CHECKING

from harness.records.codec import canonical_json
from harness.space import Choice, Distribution, Integer, Scalar, Space, Text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import TrialState


@dataclass(frozen=True)
class Observation:
    """One tried point."""

    params: Mapping[str, Scalar]
    value: float | None
    """Score, larger is better; None for a failure or while it runs."""
    running: bool = False


class Memory:
    """The history as an Optuna study in memory, always maximising."""

    def __init__(self, space: Space, history: Sequence[Observation]) -> None:
        """Take the history up to now.

        Args:
            space: What is searched.
            history: Everything tried before, in the order it was asked.
        """
        import optuna

        # Optuna logs every trial at level INFO.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {name: optuna_distribution(d) for name, d in space.items()}
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(direction="maximize", storage=self._storage)
        self._history: list[Observation] = []
        self.seen: set[str] = set()
        """The points that were tried, as JSON."""
        self.follow(history)

    def follow(self, history: Sequence[Observation]) -> bool:
        """Take what has come since; False where it changed in another way than a history does as results come in."""
        from optuna.trial import create_trial

        known = self._history
        for number in compress(count(), map(is_not, known, history)):
            if history[number] == known[number]:
                continue
            if not known[number].running or history[number].params != known[number].params:
                return False
            self._storage.set_trial_state_values(number, *_outcome(history[number]))
        for observation in history[len(known) :]:
            state, values = _outcome(observation)
            params = dict(observation.params)
            self._study.add_trial(
                create_trial(state=state, values=values, params=params, distributions=self._distributions)
            )
            self.seen.add(canonical_json(observation.params))
        self._history = list(history)
        return len(known) <= len(history)

    def propose(self, sampler: BaseSampler) -> dict[str, Scalar]:
        """A point, tried or not, which the study holds for a failure until it is rewound.

        Args:
            sampler: Made for this one question.
        """
        from optuna.trial import TrialState

        self._study.sampler = sampler
        trial = self._study.ask(dict(self._distributions))
        self._study.tell(trial, state=TrialState.FAIL)  # a refused point must not look like one that runs
        return dict(trial.params)

    def rewind(self) -> None:
        """Make the study what it was before the question, as if it had been made anew of the history."""
        # Optuna has no way to take a trial back. Its storage replaces a trial that changes, and never changes it.
        storage, study = self._storage, self._storage._studies[self._study._study_id]
        for trial in study.trials[len(self._history) :]:
            del storage._trial_id_to_study_id_and_number[trial._trial_id]
        del study.trials[len(self._history) :]
        storage._max_trial_id = len(self._history) - 1
        study.system_attrs = {}


def _outcome(observation: Observation) -> tuple[TrialState, Sequence[float] | None]:
    """State and values of a point in Optuna's terms."""
    from optuna.trial import TrialState

    if observation.running:
        return TrialState.RUNNING, None
    return (TrialState.FAIL, None) if observation.value is None else (TrialState.COMPLETE, [observation.value])


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
