"""What follows when a pack of trials did not run to its end: who is blamed, what runs again, and how small packs become.

Nobody can tell which trial of a pack its worker died of, so what it left without a record runs again one by one. A trial
that takes its second worker down alone has that as its record.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from harness.errors import SpecError, StorageError
from harness.records.lost_work import append_lost, chances_used, lost_attempt
from harness.records.paths import Paths
from harness.records.trial import TrialConfig
from harness.runners.base import Loss

log = logging.getLogger(__name__)

_CHANCES = 2
"""Workers that a trial may lose before that is recorded as its end."""


@dataclass(frozen=True)
class Verdict:
    """What a driver does about a lost pack."""

    seconds: float
    """Wall seconds that no record has."""
    again: tuple[TrialConfig, ...]
    """Trials that run again, one by one."""
    failed: tuple[TrialConfig, ...] = ()
    """Trials that have the loss as their record."""


class Losses:
    """The lost packs of a study, those of earlier drivers included."""

    def __init__(self, paths: Paths, study: str, largest: int) -> None:
        """Take a study, and the most trials that a pack may have."""
        self.paths, self.largest = paths, largest
        self._lines = paths.study(study).jobs
        self._blamed = Counter(chances_used(self._lines))
        self._packs = 0

    def judge(self, pack: Sequence[TrialConfig], unrecorded: Sequence[TrialConfig], loss: Loss) -> Verdict:
        """Write down what was lost, and say what follows.

        Args:
            pack: All trials of the pack.
            unrecorded: Those that it left without a record.
            loss: What happened.

        Raises:
            SpecError: When a trial raised it: the user must mend that.
            StorageError: When a record could not be written.
        """
        blamed = len(pack) == len(unrecorded) == 1 and loss.kind in ("worker", "error")
        if blamed:
            self._blamed[pack[0].key] += 1
        failed = blamed and (loss.kind == "error" or self._blamed[pack[0].key] >= _CHANCES)
        # A trial's own record holds the seconds of the loss that ended it.
        lost = lost_attempt(self.paths, pack, 0.0 if failed else loss.seconds, loss.reason)
        with suppress(StorageError):  # the disk may be what it was lost to
            append_lost(self._lines, replace(lost, blamed=blamed))
        self._raise_if_not_a_trials_own(loss)
        log.warning("%s lost: %s", f"trial {pack[0].key} was" if blamed else f"{len(pack)} trials were", loss.reason)
        if failed:
            return Verdict(lost.seconds, again=(), failed=(pack[0],))
        self._shrink(len(pack))
        return Verdict(lost.seconds, again=tuple(unrecorded))

    def _shrink(self, size: int) -> None:
        """From the second lost pack on, packs become smaller: it may be their size that their workers die of."""
        self._packs += size > 1
        if self._packs > 1 and self.largest > (smaller := max(1, size // 2)):
            log.warning("packs are cut to %d trials, since %d were lost", smaller, self._packs)
            self.largest = smaller

    def _raise_if_not_a_trials_own(self, loss: Loss) -> None:
        """Raise what is the user's or the disk's to mend."""
        if loss.kind == "spec":
            raise SpecError(loss.reason)
        if loss.kind == "storage":
            raise StorageError(
                f"records must be written below {self.paths.trials}, but {loss.reason}: free space or fix permissions, "
                "then run again; everything recorded is kept"
            )
