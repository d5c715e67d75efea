"""Which trials a study has asked for, and what they cost it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from harness.records.paths import Paths
from harness.records.study_trials import Member, append_member, is_reused
from harness.records.trial import TrialResult, TrialStatus


@dataclass
class Tally:
    """What the trials of a phase came to so far."""

    statuses: Counter[TrialStatus] = field(default_factory=Counter)
    reused: int = 0
    ran: int = 0
    """Trials run on behalf of this driver; the others had records."""
    seconds: float = 0.0
    """Wall seconds of all trials of the phase, lost attempts included, reused ones left out."""
    money: float | None = None

    @property
    def failed(self) -> int:
        """Trials that ended without a score."""
        return sum(count for status, count in self.statuses.items() if not status.has_scores)

    def add(self, result: TrialResult, reused: bool, paid: bool) -> None:
        """Count one trial.

        Args:
            result: Its record.
            reused: Whether another study had it run.
            paid: Whether its cost counts here: once for each trial, though two families may share it.
        """
        self.statuses[result.status] += 1
        self.reused += reused
        if reused or not paid:
            return
        self.seconds += result.cost.total_s
        if result.cost.money is not None:
            self.money = (self.money or 0.0) + result.cost.money


class Roll:
    """The study's members: a line for each, written before its trial starts."""

    def __init__(self, paths: Paths, study: str, members: Sequence[Member]) -> None:
        """Take a study and its members so far."""
        self.paths, self.study = paths, study
        self.tally = Tally()
        self._members = {_identity(member): member for member in members}
        self._reused = {member.key: member.reused for member in members}
        self._counted: set[str] = set()

    def enter(self, member: Member, recorded: bool) -> None:
        """Add a member, unless it is there already.

        Args:
            member: Why the study wants a trial.
            recorded: Whether the trial has a record already. Then the study reuses it, unless it was the study itself
                that had it run.
        """
        if _identity(member) in self._members:
            return
        entered = replace(member, reused=self._reused.get(member.key, recorded))
        append_member(self.paths, self.study, entered)
        self._reused[member.key] = entered.reused
        self._members[_identity(member)] = entered

    def count(self, member: Member, result: TrialResult) -> bool:
        """Add a trial to the tally; returns whether the study pays for it.

        Args:
            member: Why the study wanted it.
            result: Its record.
        """
        # Two families may share a trial, for example their defaults: it was paid for once.
        reused = is_reused(self._members[_identity(member)], result, self.study)
        self.tally.add(result, reused=reused, paid=member.key not in self._counted)
        self._counted.add(member.key)
        return not reused


def _identity(member: Member) -> tuple[str, str, str, int, int]:
    return member.key, member.role, member.family, member.repetition, member.number
