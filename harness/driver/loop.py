"""The loop of a phase: take proposals, have them run, bring results back; nothing is run twice, nothing is lost.

A trial is written into the study's members before it starts, so that a driver that was killed leaves a list of what
it had asked for. What has a record is never run again, whichever study ran it. Trials run in packs, in which those that
are alike train together.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from harness import __version__
from harness.driver.allowance import Allowance
from harness.driver.display import Display, Paced, Snapshot
from harness.driver.experiment import Experiment
from harness.driver.known_records import KnownRecords
from harness.driver.losses import Losses
from harness.driver.roll import Roll, Tally
from harness.driver.sources import Proposal, Source
from harness.errors import HarnessError, StorageError
from harness.files import ROOM, now
from harness.records.results import find_result, write_result
from harness.records.study_trials import Member
from harness.records.trial import CostRecord, Provenance, TrialConfig, TrialResult
from harness.runners.base import Ended, Loss, Runner
from harness.trial.packs import cut, portion

_PAUSE_S = 0.03
_LONGEST_PAUSE_S = 1.0
"""Between two looks at the runner: at first short beside any trial, and a twentieth of the time that nothing has ended
for, up to a second. A look reads folders, which on a shared file system costs everybody."""


class Driver:
    """Runs what a source proposes."""

    def __init__(
        self,
        experiment: Experiment,
        runner: Runner,
        members: Sequence[Member],
        said: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """Take what is to be driven.

        Args:
            experiment: The study, and its site.
            runner: Where its packs run.
            members: The study's trials so far, those of other phases included.
            said: Gives what can be said of the study by now, a line for each task.
        """
        self.experiment, self.paths, self.runner, self.members = experiment, experiment.paths, runner, members
        self.known = KnownRecords(self.paths, experiment.files.jobs, experiment.site.refresh)
        self.roll = Roll(self.paths, experiment.name, members)
        self.said = said
        self._said = Paced(said)
        self.allowance = Allowance(experiment, members)
        self._losses = Losses(self.paths, experiment.name, experiment.site.settings.pack)
        self._waiting: dict[str, list[Proposal]] = {}
        """Proposals whose trials have no record yet, by key."""
        self._unsettled: dict[str, float] = {}
        """When trials ended whose records are not visible yet, by key."""
        self._put_off: dict[str, Loss] = {}
        """What trials were lost to that are not tried again by this driver, and have no record, by key."""

    @property
    def tally(self) -> Tally:
        """What the trials of this driver came to so far."""
        return self.roll.tally

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
        changed, news_at = True, time.monotonic()
        while True:
            if changed:  # a source asked again without news would give the same answer, and asking a sampler is slow
                self._fill(source)
            ended = self.runner.poll()
            for pack in ended:
                self._settle(source, pack)
            changed = self._settle_late(source) or bool(ended)
            news_at = time.monotonic() if changed else news_at
            display.show(lambda: self._snapshot(source))
            # Proposals that have records leave nothing to wait for, but the source may want more after them.
            if not self._waiting and self._fill(source) == 0 and not self._waiting:
                break
            if self._waiting and not ended:
                time.sleep(pause_s(time.monotonic() - news_at))
        display.show(lambda: self._snapshot(source), last=True)

    def raise_if_put_off(self) -> None:
        """Refuse to call a phase complete some of whose trials were never let end.

        Raises:
            HarnessError: When trials were lost to their site again and again.
        """
        if self._put_off:
            key, loss = next(iter(self._put_off.items()))
            raise HarnessError(
                f"every trial must have ended by itself, but {len(self._put_off)} of {self.experiment.name} were lost "
                f"{loss.cause.policy.chances} times to their site (the last of {key}: {loss.reason}): mend that, then "
                "type the same command again; everything recorded is kept"
            )

    def _fill(self, source: Source) -> int:
        """Take proposals while a worker could become idle; returns how many were taken."""
        taken = 0
        if self._waiting and self._free < ROOM:
            return taken  # what runs needs the rest for its records
        while not self.allowance.reached and (room := self.runner.slots - len(self._under_way())) > 0:
            proposals, more_follow = self._ask(source, room)
            if not proposals:
                return taken
            taken += len(proposals)
            self._admit(source, proposals, more_follow)
        return taken

    def _ask(self, source: Source, room: int) -> tuple[list[Proposal], bool]:
        """Proposals to be run next.

        Args:
            source: Who proposes.
            room: Packs that the runner can take.

        Returns:
            The proposals, and whether more will follow; if so, packs need not be cut finer to end together.
        """
        workers, left = self.runner.workers, source.left
        largest = self._losses.largest
        limit, last = portion(left, workers, largest), left <= workers * largest
        # What no longer fills a pack for every worker is taken at once, so that `cut` sees all of it.
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

    def _admit(self, source: Source, proposals: Sequence[Proposal], more_follow: bool = False) -> None:
        """Enter proposals into the roll, tell the source what has a record, and have the rest run.

        Args:
            source: Whose proposals they are.
            proposals: Trials that it wants.
            more_follow: Whether more trials follow, so that packs may be as large as they can; otherwise they are cut
                so that all workers end together.
        """
        new = []
        for proposal in proposals:
            key = proposal.config.key
            result = self.known.find(key)
            if result is None and key not in self._waiting and not self._may_start(proposal.config):
                continue
            self.roll.enter(proposal.member, recorded=result is not None)
            if result is not None:
                self._tell(source, proposal, result)
                continue
            if key not in self._waiting:
                new.append(proposal.config)
            self._waiting.setdefault(key, []).append(proposal)
        self._submit(new, more_follow)

    @property
    def _free(self) -> int:
        """Bytes that are free where records are written."""
        return shutil.disk_usage(self.paths.results).free

    def _may_start(self, config: TrialConfig) -> bool:
        """Whether the study's own budget pays for a trial; what an earlier driver has queued runs in any case."""
        return self.allowance.admits(config) or config.key in self._queued()

    def _queued(self) -> set[str]:
        """Trials that the runner has, those of an earlier driver included."""
        return {key for pack in self.runner.under_way() for key in pack}

    def _submit(self, configs: Sequence[TrialConfig], more_follow: bool) -> None:
        """Have trials run in packs, apart from those that run already; see `_admit`."""
        under_way = self._queued()  # an earlier driver that was killed may have left packs
        new = [config for config in configs if config.key not in under_way]
        if new and (free := self._free) < ROOM:
            raise StorageError(
                f"{self.paths.results} must have {ROOM >> 20} MiB free before trials start, but has {free >> 20}: free space, "
                "then type the same command again; everything recorded is kept"
            )
        self.tally.ran += len(new)
        workers, largest = self.runner.workers, self._losses.largest
        packs = cut(new, 1, largest) if more_follow else cut(new, workers, largest, self._under_way())
        for pack in packs:
            self.runner.submit(pack)

    def _settle(self, source: Source, pack: Ended) -> None:
        """Take the records of a pack that ended; what it left without one runs again, or has the loss as its record."""
        unrecorded = [config for config in pack.configs if not self._take_record(source, config.key)]
        if pack.loss is None:  # its records are there, but a shared file system may show them late
            self._unsettled |= {config.key: time.monotonic() for config in unrecorded}
            return
        verdict = self._losses.judge(pack.configs, unrecorded, pack.loss)
        self.tally.seconds += verdict.seconds
        self.allowance.lose(verdict.seconds)
        for config in verdict.failed:
            write_result(self.paths, self._failure(config, pack.loss))
            self._take_record(source, config.key)
        for config in verdict.put_off:
            self._put_off[config.key] = pack.loss
            for proposal in self._waiting.pop(config.key):  # its seconds were counted as lost
                self._tell(source, proposal, self._failure(config, replace(pack.loss, seconds=0.0)))
        for again in verdict.again:
            if paid := [config for config in again if self._is_paid_for_again(config)]:
                self.runner.submit(paid)

    def _is_paid_for_again(self, config: TrialConfig) -> bool:
        """Whether the study's own budget pays for another attempt; nobody waits for the trial any more where it does not."""
        admitted = self.allowance.admits(config)
        if not admitted:
            del self._waiting[config.key]
        return admitted

    def _failure(self, config: TrialConfig, loss: Loss) -> TrialResult:
        """A failure is a record too: the driver writes it where the worker could not."""
        on_gpu = self.experiment.site.device_type == "cuda"
        return TrialResult(
            config=config,
            status=loss.cause.policy.status,
            reason=loss.reason,
            cost=CostRecord(seconds={"lost": loss.seconds}, gpu_s=loss.seconds if on_gpu else 0.0),
            provenance=Provenance(
                harness_version=__version__, hostname=socket.gethostname(), started_at=now(), study=self.experiment.name
            ),
        )

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
        """Tell the source of a trial's record; False where there is none yet."""
        if key not in self._waiting:
            return True  # of a pack that nobody waits for any more
        result = find_result(self.paths, key)
        if result is None:
            return False
        for proposal in self._waiting.pop(key):
            self._tell(source, proposal, result)
        return True

    def _tell(self, source: Source, proposal: Proposal, result: TrialResult) -> None:
        """Count a trial, and bring its record to the source."""
        self.allowance.settle(proposal.config.key)
        if self.roll.count(proposal.member, result):
            self.allowance.charge(result)
        source.tell(proposal, result)

    def _snapshot(self, source: Source) -> Snapshot:
        tally, waiting = self.tally, len(self._waiting)
        ended = tally.statuses.total()
        return Snapshot(
            done=ended - tally.failed,
            failed=tally.failed,
            running=waiting,
            planned=max(source.planned, ended + waiting),
            ran=tally.ran - waiting,
            seconds=tally.seconds,
            money=tally.money,
            leaders=(*source.leaders(), *self._said.answer(ended)),
        )


def pause_s(quiet_s: float) -> float:
    """Seconds until the next look at the runner, after so many seconds without news."""
    return min(_LONGEST_PAUSE_S, max(_PAUSE_S, quiet_s / 20))
