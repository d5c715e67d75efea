"""The loop of a step: take proposals, have them run, bring results back; nothing is run twice, nothing is lost.

A trial is written into the study's members before it starts, so that a driver that was killed leaves a list of what
it had asked for. What has a record is never run again, whichever study ran it. What a dead worker held is run once
more; if it kills its second worker too, that is its record.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from harness import __version__
from harness.errors import HarnessError, SpecError, StorageError
from harness.layout import Layout, find_result, write_result
from harness.members import Member, append_line, append_member, now, read_lines
from harness.progress import Display, Snapshot
from harness.records import CostRecord, Provenance, TrialConfig, TrialResult, TrialStatus
from harness.runners.base import Ended, Loss, Runner
from harness.setting import Site

log = logging.getLogger(__name__)

_CHANCES = 2
"""Workers that a trial may lose before that is recorded as its end."""
_PAUSE_S = 0.03


@dataclass(frozen=True)
class Proposal:
    """A trial that a step wants, and the line that says why."""

    member: Member
    config: TrialConfig
    token: Any = None
    """What the source recognises it by."""


class Source(ABC):
    """What a step wants to have run."""

    @abstractmethod
    def next(self) -> Proposal | None:
        """The next trial, or None if there is none before more results are in, or none at all."""

    @abstractmethod
    def tell(self, proposal: Proposal, result: TrialResult) -> None:
        """A trial's record."""

    @property
    @abstractmethod
    def planned(self) -> int:
        """About how many trials there will be in all."""

    def leaders(self) -> Sequence[str]:
        """The best so far, one sentence for each task."""
        return ()


@dataclass
class Tally:
    """What a driver has seen so far."""

    statuses: Counter[TrialStatus] = field(default_factory=Counter)
    reused: int = 0
    ran: int = 0
    """Trials run on behalf of this driver; the others had records."""
    seconds: float = 0.0
    """Wall seconds of all trials of the step, reused ones left out."""
    money: float | None = None

    def add(self, result: TrialResult, reused: bool, paid: bool) -> None:
        """Count one trial; its cost only where it is `paid` here, since two families may share a trial."""
        self.statuses[result.status] += 1
        self.reused += reused
        if reused or not paid:
            return
        self.seconds += result.cost.total_s
        if result.cost.money is not None:
            self.money = (self.money or 0.0) + result.cost.money


class Driver:
    """Runs what a source proposes."""

    def __init__(self, study: str, site: Site, runner: Runner, known: Sequence[Member], pack: int = 1) -> None:
        self.study, self.site, self.runner, self.pack = study, site, runner, pack
        self.layout: Layout = site.layout
        self.known = {_identity(member): member for member in known}
        self.tally = Tally()
        self._jobs = self.layout.study(study) / "jobs.jsonl"
        self._reused = {member.key: member.reused for member in known}
        self._counted: set[str] = set()
        self._waiting: dict[str, list[Proposal]] = {}
        self._losses = Counter(line["key"] for line in read_lines(self._jobs) if line["event"] == "lost")
        self._unsettled: dict[str, float] = {}

    def run(self, source: Source, earlier: Sequence[Proposal], display: Display) -> None:
        """Drive a source to its end.

        Args:
            source: What is wanted.
            earlier: Proposals of the source that an earlier driver had admitted already.
            display: Where progress is shown.

        Raises:
            StorageError: When records could not be written; everything that could is kept.
        """
        self._admit(source, earlier)
        while True:
            self._fill(source)
            ended = self.runner.poll()
            for pack in ended:
                self._settle(source, pack)
            self._settle_late(source)
            display.show(lambda: self._snapshot(source))
            if not self._waiting and self._fill(source) == 0 and not self._waiting:
                break
            if self._waiting and not ended:
                time.sleep(_PAUSE_S)
        display.show(lambda: self._snapshot(source), last=True)

    def _fill(self, source: Source) -> int:
        """Take proposals while the runner has room; returns how many were taken."""
        taken = 0
        while (room := self.runner.capacity - len(self._waiting)) > 0:
            proposals = [p for p in (source.next() for _ in range(min(room, self.pack))) if p is not None]
            if not proposals:
                return taken
            taken += len(proposals)
            self._admit(source, proposals)
        return taken

    def _admit(self, source: Source, proposals: Sequence[Proposal]) -> None:
        """Write members, tell what has a record, and submit the rest in packs that share a base model."""
        new = []
        for proposal in proposals:
            found = self._record(proposal.config.key)
            if _identity(proposal.member) not in self.known:
                self._join(proposal, self._reused.get(proposal.config.key, found is not None))
            if found is not None:
                self._tell(source, proposal, found)
                continue
            if proposal.config.key not in self._waiting:
                new.append(proposal.config)
            self._waiting.setdefault(proposal.config.key, []).append(proposal)
        self._submit(new)

    def _join(self, proposal: Proposal, reused: bool) -> None:
        member = replace(proposal.member, reused=reused)
        append_member(self.layout, self.study, member)
        self._reused[member.key] = reused
        self.known[_identity(member)] = member

    def _record(self, key: str) -> TrialResult | None:
        """The record of a key that may be believed; with `refresh`, none that other versions wrote."""
        result = find_result(self.layout, key)
        if result is None or not self.site.refresh or not doubtful(result):
            return result
        self.layout.record(key).unlink()
        return None

    def _submit(self, configs: Sequence[TrialConfig]) -> None:
        under_way = self.runner.under_way()
        new = [config for config in configs if config.key not in under_way]
        self.tally.ran += len(new)
        for _, group in groupby(new, key=lambda config: config.pipeline.base_model):
            same = list(group)
            for start in range(0, len(same), self.pack):
                self.runner.submit(same[start : start + self.pack])

    def _settle(self, source: Source, pack: Ended) -> None:
        unrecorded = [config for config in pack.configs if not self._take_record(source, config.key)]
        if not unrecorded:
            return
        if pack.loss is None:
            self._unsettled |= {config.key: time.monotonic() for config in unrecorded}
        elif pack.loss.kind == "spec":
            raise SpecError(pack.loss.reason)
        elif pack.loss.kind == "storage":
            raise StorageError(
                f"records must be written below {self.layout.trials}, but {pack.loss.reason}: free space or fix "
                "permissions, then run again; everything recorded is kept"
            )
        else:
            self._lose(source, unrecorded, pack.loss)

    def _lose(self, source: Source, configs: Sequence[TrialConfig], loss: Loss) -> None:
        """The first without a record was running as the pack ended; the others had not begun, and are run again."""
        running, rest = configs[0], list(configs[1:])
        self._losses[running.key] += 1
        append_line(self._jobs, {"event": "lost", "key": running.key, "reason": loss.reason, "at": now()})
        log.warning("trial %s was lost: %s", running.key, loss.reason)
        if loss.kind == "worker" and self._losses[running.key] < _CHANCES:
            rest.insert(0, running)
        else:
            self._record_loss(source, running, loss)
        self._submit([config for config in rest if config.key in self._waiting])

    def _record_loss(self, source: Source, config: TrialConfig, loss: Loss) -> None:
        """A failure is a record too: the driver writes it where the worker could not."""
        cost = CostRecord(seconds={"lost": loss.seconds})
        provenance = Provenance(harness_version=__version__, hostname=socket.gethostname(), started_at=now())
        write_result(self.layout, TrialResult(config, loss.status, loss.reason, cost=cost, provenance=provenance))
        self._take_record(source, config.key)

    def _settle_late(self, source: Source) -> None:
        """Records of trials that ended but are not visible yet, as on a shared file system."""
        for key, since in list(self._unsettled.items()):
            if self._take_record(source, key):
                del self._unsettled[key]
            elif time.monotonic() - since > self.runner.settle_s:
                raise StorageError(
                    f"{self.layout.record(key)} must be a whole record after its trial, but is not: check the disk, "
                    "then run again; everything else is kept"
                )

    def _take_record(self, source: Source, key: str) -> bool:
        if key not in self._waiting:
            return True  # of a pack that nobody waits for any more
        result = find_result(self.layout, key)
        if result is None:
            return False
        for proposal in self._waiting.pop(key):
            self._tell(source, proposal, result)
        return True

    def _tell(self, source: Source, proposal: Proposal, result: TrialResult) -> None:
        key = result.config.key
        self.tally.add(result, self.known[_identity(proposal.member)].reused, paid=key not in self._counted)
        self._counted.add(key)
        source.tell(proposal, result)

    def _snapshot(self, source: Source) -> Snapshot:
        statuses = self.tally.statuses
        failed = sum(count for status, count in statuses.items() if not status.has_scores)
        return Snapshot(
            done=statuses.total() - failed,
            failed=failed,
            running=len(self._waiting),
            planned=max(source.planned, statuses.total() + len(self._waiting)),
            ran=self.tally.ran - len(self._waiting),
            seconds=self.tally.seconds,
            money=self.tally.money,
            leaders=tuple(source.leaders()),
        )


def doubtful(result: TrialResult) -> bool:
    """Whether it failed for what may be its site's reasons, or another version of harness or a library made it."""
    from importlib.metadata import PackageNotFoundError, version

    if not result.status.has_scores and result.status != TrialStatus.DIVERGED:
        return True
    if result.provenance.harness_version != __version__:
        return True
    for name, recorded in result.provenance.versions.items():
        try:
            if version(name) != recorded:
                return True
        except PackageNotFoundError:
            continue
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One driver per study: holds `driver.lock` while inside, on this host or on a file system shared with others.

    Raises:
        HarnessError: When another driver holds it; the message names its process and host.
    """
    path = folder / "driver.lock"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise HarnessError(
                f"one driver at a time may run {folder.name}, but {holder} does: wait or stop it"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _identity(member: Member) -> tuple[str, str, str, int, int]:
    return member.key, member.role, member.family, member.repetition, member.number
