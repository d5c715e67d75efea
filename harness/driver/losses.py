"""What follows when a pack of trials did not run to its end: who is blamed, what runs again, and how small packs become.

Nobody can tell which trial of a pack its worker died of, so what it left without a record runs again one by one; only
what is known to have come from outside leaves a pack as it was. A trial that takes its second worker down alone has that
as its record. One that was lost to what happened around it again and again is put off, without a record, until the user
types the command again. `records.causes` has the table.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from harness.errors import SpecError, StorageError
from harness.records.causes import Cause
from harness.records.lost_work import append_lost, chances_used, lost_attempt
from harness.records.paths import Paths
from harness.records.trial import TrialConfig
from harness.runners.base import Loss

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What a driver does about a lost pack."""

    seconds: float
    """Wall seconds that no record has."""
    again: tuple[tuple[TrialConfig, ...], ...] = ()
    """Packs that run again."""
    failed: tuple[TrialConfig, ...] = ()
    """Trials that have the loss as their record."""
    put_off: tuple[TrialConfig, ...] = ()
    """Trials that have no record, and are not tried again by this driver."""


class Losses:
    """The lost packs of a study, those of earlier drivers included."""

    def __init__(self, paths: Paths, study: str, largest: int) -> None:
        """Take a study, and the most trials that a pack may have."""
        self.paths, self.largest = paths, largest
        self._lines = paths.study(study).jobs
        self._blamed = Counter(chances_used(self._lines))
        self._outside: Counter[str] = Counter()
        """How often each trial was lost to something outside while this driver ran; another driver counts anew."""
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
        policy = loss.cause.policy
        blamed = policy.fault == "trial" and len(pack) == len(unrecorded) == 1
        self._blamed.update(pack[0].key for _ in range(blamed))
        failed = blamed and self._blamed[pack[0].key] >= policy.chances
        # A trial's own record holds the seconds of the loss that ended it.
        lost = lost_attempt(self.paths, pack, 0.0 if failed else loss.seconds, loss.cause, loss.reason)
        with suppress(StorageError):  # the disk may be what it was lost to
            append_lost(self._lines, replace(lost, blamed=blamed))
        self._raise_if_users_to_mend(loss)
        whose = f"trial {pack[0].key} was" if blamed else f"{len(unrecorded)} trials were"
        log.warning("%s lost, since %s: %s", whose, policy.what, loss.reason)
        if failed:
            return Verdict(lost.seconds, failed=(pack[0],))
        if policy.fault == "trial":
            self._shrink(len(pack))
            return Verdict(lost.seconds, again=tuple((config,) for config in unrecorded))
        return self._lost_outside(unrecorded, loss, lost.seconds)

    def _lost_outside(self, unrecorded: Sequence[TrialConfig], loss: Loss, seconds: float) -> Verdict:
        """The same pack again; one by one where a trial may have done it after all; nothing after too many times."""
        self._outside.update(config.key for config in unrecorded)
        policy = loss.cause.policy
        spent = tuple(config for config in unrecorded if self._outside[config.key] >= policy.chances)
        left = tuple(config for config in unrecorded if config not in spent)
        whole = policy.certain or all(self._outside[config.key] == 1 for config in left)
        again = (left,) if whole and left else tuple((config,) for config in left)
        return Verdict(seconds, again=again, put_off=spent)

    def _shrink(self, size: int) -> None:
        """From the second lost pack on, packs become smaller: it may be their size that their workers die of."""
        self._packs += size > 1
        if self._packs > 1 and self.largest > (smaller := max(1, size // 2)):
            log.warning("packs are cut to %d trials, since %d were lost", smaller, self._packs)
            self.largest = smaller

    def _raise_if_users_to_mend(self, loss: Loss) -> None:
        """Raise what is the user's or the disk's to mend."""
        if loss.cause == Cause.SPEC:
            raise SpecError(loss.reason)
        if loss.cause == Cause.STORAGE:
            raise StorageError(
                f"records must be written below {self.paths.trials}, but {loss.reason}: free space or fix permissions, "
                "then run again; everything recorded is kept"
            )
