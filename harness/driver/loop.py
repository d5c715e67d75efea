"""The loop of a step: take proposals, have them run, bring results back; nothing is run twice, nothing is lost.

A trial is written into the study's members before it starts, so that a driver that was killed leaves a list of what
it had asked for. What has a record is never run again, whichever study ran it. Trials run in packs, in which those that
are alike train together; so nobody can tell which trial of a pack its worker died of, and what a dead worker held runs
again one by one. A trial that takes its second worker down alone has that as its record.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from harness import __version__
from harness.driver.display import Display, Snapshot
from harness.driver.resolve import Site, device
from harness.errors import HarnessError, SpecError, StorageError
from harness.files import now
from harness.records.lost_work import append_lost, chances_used, lost_attempt
from harness.records.paths import Paths, StudyPaths
from harness.records.results import find_result, write_result
from harness.records.study_trials import Member, append_member
from harness.records.trial import CostRecord, Provenance, TrialConfig, TrialResult, TrialStatus
from harness.runners.base import Ended, Loss, Runner
from harness.trial.packs import cut, portion

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
    def next(self, limit: int, waiting: bool = False) -> list[Proposal]:
        """The next trials that are alike; none before more results are in, or none at all.

        Args:
            limit: Most of them, at least one.
            waiting: Whether a worker has nothing to do otherwise.
        """

    @abstractmethod
    def tell(self, proposal: Proposal, result: TrialResult) -> None:
        """A trial's record."""

    @property
    @abstractmethod
    def planned(self) -> int:
        """About how many trials there will be in all."""

    @property
    @abstractmethod
    def left(self) -> int:
        """About how many of them `next` has not given yet."""

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
    """Wall seconds of all trials of the step, lost attempts included, reused ones left out."""
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

    def __init__(self, study: str, site: Site, runner: Runner, known: Sequence[Member], pack: int) -> None:
        """Take a study, its members so far, and the most trials that may go into a pack."""
        self.study, self.site, self.runner, self.pack = study, site, runner, pack
        self.paths: Paths = site.paths
        self.known = {_identity(member): member for member in known}
        self.tally = Tally()
        self._jobs = self.paths.study(study).jobs
        self._reused = {member.key: member.reused for member in known}
        self._counted: set[str] = set()
        self._waiting: dict[str, list[Proposal]] = {}
        self._losses, self._lost_packs = Counter(chances_used(self._jobs)), 0
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
        changed = True
        while True:
            if changed:
                self._fill(source)
            ended = self.runner.poll()
            for pack in ended:
                self._settle(source, pack)
            changed = self._settle_late(source) or bool(ended)
            display.show(lambda: self._snapshot(source))
            if not self._waiting and self._fill(source) == 0 and not self._waiting:
                break
            if self._waiting and not ended:
                time.sleep(_PAUSE_S)
        display.show(lambda: self._snapshot(source), last=True)

    def _fill(self, source: Source) -> int:
        """Take proposals while a worker could become idle; returns how many were taken."""
        taken = 0
        while (room := self.runner.slots - len(self._under_way())) > 0:
            proposals, whole = self._ask(source, room)
            if not proposals:
                return taken
            taken += len(proposals)
            self._admit(source, proposals, whole)
        return taken

    def _ask(self, source: Source, room: int) -> tuple[list[Proposal], bool]:
        """Proposals for so many packs, and whether more will follow, so that none need be cut for the workers' sake.

        What no longer fills a pack for every worker is taken at once.
        """
        workers, left = self.runner.workers, source.left
        limit, last = portion(left, workers, self.pack), left <= workers * self.pack
        idle = workers - len(self._under_way())
        asked: list[Proposal] = []
        runs = 0
        while last or runs < room:
            run = source.next(limit) or (source.next(1, waiting=True) if len(asked) < idle else [])
            if not run:
                return asked, False
            asked += run
            runs += 1
        return asked, True

    def _under_way(self) -> list[int]:
        """Sizes of the packs with trials that somebody waits for."""
        packs = self.runner.under_way()
        return [len(pack) for pack in packs if not self._waiting.keys().isdisjoint(pack)]

    def _admit(self, source: Source, proposals: Sequence[Proposal], whole: bool = False) -> None:
        """Write members, tell what has a record, and submit the rest: in `whole` packs, or so that workers end together."""
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
        self._submit(new, whole)

    def _join(self, proposal: Proposal, reused: bool) -> None:
        member = replace(proposal.member, reused=reused)
        append_member(self.paths, self.study, member)
        self._reused[member.key] = reused
        self.known[_identity(member)] = member

    def _record(self, key: str) -> TrialResult | None:
        """The record of a key that may be believed; with `refresh`, none that other versions wrote."""
        result = find_result(self.paths, key)
        if result is None or not self.site.refresh or not doubtful(result):
            return result
        self.paths.record(key).unlink()
        return None

    def _submit(self, configs: Sequence[TrialConfig], whole: bool) -> None:
        """Have trials run in packs, apart from those that run already."""
        under_way = {key for pack in self.runner.under_way() for key in pack}
        new = [config for config in configs if config.key not in under_way]
        self.tally.ran += len(new)
        for pack in cut(new, 1, self.pack) if whole else cut(new, self.runner.workers, self.pack, self._under_way()):
            self.runner.submit(pack)

    def _settle(self, source: Source, pack: Ended) -> None:
        unrecorded = [config for config in pack.configs if not self._take_record(source, config.key)]
        if pack.loss is not None:
            self._lose(source, pack.configs, unrecorded, pack.loss)
        elif unrecorded:
            self._unsettled |= {config.key: time.monotonic() for config in unrecorded}

    def _lose(self, source: Source, pack: Sequence[TrialConfig], unrecorded: Sequence[TrialConfig], loss: Loss) -> None:
        """What a pack left without a record runs again, one by one; its time is written down."""
        alone = len(pack) == len(unrecorded) == 1 and loss.kind in ("worker", "error")
        if alone:
            self._losses[pack[0].key] += 1
        over = alone and (loss.kind == "error" or self._losses[pack[0].key] >= _CHANCES)
        lost = replace(lost_attempt(self.paths, pack, 0.0 if over else loss.seconds, loss.reason), blamed=alone)
        with suppress(StorageError):  # the disk may be what it was lost to
            append_lost(self._jobs, lost)
        self.tally.seconds += lost.seconds
        _raise_for(loss, self.paths)
        log.warning("%s lost: %s", f"trial {pack[0].key} was" if alone else f"{len(pack)} trials were", loss.reason)
        if over:
            self._record_loss(source, pack[0], loss)
            return
        self._shrink(len(pack))
        for config in unrecorded:
            self.runner.submit([config])

    def _shrink(self, size: int) -> None:
        """From the second lost pack on, packs become smaller: it may be their size that their workers die of."""
        self._lost_packs += size > 1
        if self._lost_packs > 1 and self.pack > (smaller := max(1, size // 2)):
            log.warning("packs are cut to %d trials, since %d were lost", smaller, self._lost_packs)
            self.pack = smaller

    def _record_loss(self, source: Source, config: TrialConfig, loss: Loss) -> None:
        """A failure is a record too: the driver writes it where the worker could not."""
        on_gpu = device(self.site) == "cuda"
        cost = CostRecord(seconds={"lost": loss.seconds}, gpu_s=loss.seconds if on_gpu else 0.0)
        provenance = Provenance(harness_version=__version__, hostname=socket.gethostname(), started_at=now())
        write_result(
            self.paths,
            TrialResult(config=config, status=loss.status, reason=loss.reason, cost=cost, provenance=provenance),
        )
        self._take_record(source, config.key)

    def _settle_late(self, source: Source) -> bool:
        """Take records of trials that ended but were not visible yet, as on a shared file system; whether any came."""
        before = len(self._unsettled)
        for key, since in list(self._unsettled.items()):
            if self._take_record(source, key):
                del self._unsettled[key]
            elif time.monotonic() - since > self.runner.settle_s:
                raise StorageError(
                    f"{self.paths.record(key)} must be a whole record after its trial, but is not: check the disk, "
                    "then run again; everything else is kept"
                )
        return len(self._unsettled) < before

    def _take_record(self, source: Source, key: str) -> bool:
        if key not in self._waiting:
            return True  # of a pack that nobody waits for any more
        result = find_result(self.paths, key)
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


def _raise_for(loss: Loss, paths: Paths) -> None:
    """Raise what is the user's or the disk's to mend."""
    if loss.kind == "spec":
        raise SpecError(loss.reason)
    if loss.kind == "storage":
        raise StorageError(
            f"records must be written below {paths.trials}, but {loss.reason}: free space or fix permissions, then run "
            "again; everything recorded is kept"
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
def locked(study: StudyPaths) -> Iterator[None]:
    """One driver per study: holds its lock while inside, on this host or on a file system shared with others.

    Raises:
        HarnessError: When another driver holds it; the message names its process and host.
    """
    study.folder.mkdir(parents=True, exist_ok=True)
    with study.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise HarnessError(
                f"one driver at a time may run {study.name}, but {holder} does: wait or stop it"
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
