"""What a cell's sampler remembers: its history as an Optuna study, which follows the history and is rewound after a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


class Tried:
    """Everything that was tried, in the order it was asked, and which of it changed, so that nobody has to look at all."""

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._observations = list(observations)
        self.changes: list[int] = []
        """Numbers of the observations that were replaced, in the order in which they were."""

    def __len__(self) -> int:
        return len(self._observations)

    def __getitem__(self, number: int) -> Observation:
        return self._observations[number]

    def append(self, observation: Observation) -> None:
        """Enter the next one."""
        self._observations.append(observation)

    def replace(self, number: int, observation: Observation) -> None:
        """Say what became of one."""
        self._observations[number] = observation
        self.changes.append(number)


class Memory:
    """The history as an Optuna study in memory, always maximising."""

    def __init__(self, space: Space, tried: Tried) -> None:
        """Take the history up to now.

        Args:
            space: What is searched.
            tried: Everything tried before.
        """
        import optuna

        # Optuna logs every trial at level INFO.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = {name: optuna_distribution(d) for name, d in space.items()}
        self._storage = optuna.storages.InMemoryStorage()
        self._study = optuna.create_study(direction="maximize", storage=self._storage)
        self._tried, self._heard = tried, 0
        self._history: list[Observation] = []
        """What the study holds of it, by the first `_heard` of its changes."""
        self.seen: set[str] = set()
        """The points that were tried, as JSON."""
        self.follow(tried)

    def follow(self, tried: Tried) -> bool:
        """Take what has come since; False where it is another one, or changed in another way than as results come in."""
        from optuna.trial import create_trial

        if tried is not self._tried:
            return False
        known, changes = self._history, tried.changes[self._heard :]
        self._heard += len(changes)
        for number in dict.fromkeys(changes):
            if number >= len(known) or tried[number] == known[number]:
                continue
            if not known[number].running or tried[number].params != known[number].params:
                return False
            self._storage.set_trial_state_values(number, *_outcome(tried[number]))
            known[number] = tried[number]
        for observation in map(tried.__getitem__, range(len(known), len(tried))):
            state, values = _outcome(observation)
            params = dict(observation.params)
            self._study.add_trial(
                create_trial(state=state, values=values, params=params, distributions=self._distributions)
            )
            self.seen.add(canonical_json(observation.params))
            known.append(observation)
        return True

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
