"""Trials in the driver's own process."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property

from harness.records.paths import StudyPaths
from harness.records.trial import TrialConfig
from harness.runners._options import Settings
from harness.runners.base import Backend, Ended, Runner
from harness.workers.worker import Duty, Work, start_work


class InlineBackend(Backend):
    """Runs each pack as it is submitted, before the driver goes on: for tests, debugging and small machines."""

    summary = "in this process, one pack after the other"

    @classmethod
    def default_workers(cls) -> int:
        """One: the process itself."""
        return 1

    @classmethod
    def workers(cls, settings: Settings) -> int:
        """One, whatever is asked for."""
        return 1

    def open(self, study: StudyPaths, duty: Duty) -> Runner:
        """A runner that starts nothing."""
        return _InlineRunner(duty)


class _InlineRunner(Runner):
    workers = slots = 1

    def __init__(self, duty: Duty) -> None:
        self.duty = duty
        self._ended: list[Ended] = []

    @cached_property
    def _work(self) -> Work:
        """Started by the first pack: a phase with nothing to run imports nothing."""
        return start_work(self.duty)

    def submit(self, configs: Sequence[TrialConfig]) -> None:
        """Run the pack now; an error that is not a trial's own goes up."""
        self._work(configs)
        self._ended.append(Ended(tuple(configs)))

    def poll(self) -> list[Ended]:
        """The packs run since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def under_way(self) -> Sequence[Collection[str]]:
        """Packs whose end was not reported yet."""
        return [[config.key for config in pack.configs] for pack in self._ended]
