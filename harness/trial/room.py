"""What memory was seen to suffice for, so that a process's next trials of the same kind need not find it out again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.records.trial import TrialConfig
from harness.trial.packs import kindred

if TYPE_CHECKING:
    from harness.training.learner import Learner


@dataclass(frozen=True)
class _Fit:
    """What fits of a kind of trials; None and False where nothing was refused."""

    trials: int | None = None
    """That train together."""
    examples: int | None = None
    """Of a forward pass of one trial."""
    recomputes: bool = False


def _kind(config: TrialConfig) -> str:
    return f"{kindred(config)} {config.task.name}"  # whose rows have their own lengths


class Room:
    """What fitted into a process's device, by what trials have in common: base, task, method, batch and length."""

    def __init__(self) -> None:
        self._fits: dict[str, _Fit] = {}

    def refused(self, configs: Sequence[TrialConfig]) -> bool:
        """Whether so many trials of their kind are known not to fit together."""
        most = self._of(configs[0]).trials
        return most is not None and len(configs) > most

    def shrink(self, config: TrialConfig, trials: int) -> None:
        """Remember that no more trials of a kind fit together.

        Args:
            config: One of them.
            trials: Most that are tried from now on.
        """
        self._fits[_kind(config)] = replace(self._of(config), trials=trials)

    def keep(self, config: TrialConfig, learner: Learner) -> None:
        """Remember how a trial was made to fit that did not fit even alone.

        Args:
            config: The trial.
            learner: Its stage, which goes on.
        """
        self._fits[_kind(config)] = _Fit(1, learner.settings.pass_examples, learner.settings.recomputes)

    def give(self, config: TrialConfig, learner: Learner) -> None:
        """Make a trial fit from the start, as one of its kind was made to.

        Args:
            config: The trial, which trains alone.
            learner: Its stage, before its first step.
        """
        fit = self._of(config)
        while fit.examples is not None and fit.examples < (learner.settings.pass_examples or learner.batch[0]):
            learner.cut_passes()
        if fit.recomputes and not learner.settings.recomputes:
            learner.spare_memory()

    def _of(self, config: TrialConfig) -> _Fit:
        return self._fits.get(_kind(config), _Fit())
