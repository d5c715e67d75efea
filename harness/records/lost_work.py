"""What a study lost or saved beside its trials' records: attempts that a dead worker took along, families that gave up.

`StudyPaths.jobs` has lines with event `lost`: seconds of a trial that no record has. `StudyPaths.stops` has a line for
each family that stopped before its budget was used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.files import append_line, duration, now
from harness.records.causes import Cause
from harness.records.codec import Record, read_records, to_json
from harness.records.paths import Paths, StudyPaths
from harness.records.results import find_result
from harness.records.trial import TrialConfig, TrialResult


@dataclass(frozen=True, kw_only=True)
class Stop(Record):
    """A family that gave up on a task and base model; scores are in the task's own metric."""

    family: str
    task: str
    base_model: str
    scored: int
    """Its trials with a score at full fidelity."""
    left: float
    """Full trials that its remaining budget would have paid for."""
    seconds: float
    """Wall seconds that these would have taken, going by those before; loading left out."""
    best: float
    """Its best validation score."""
    leader: float
    """The best validation score of all families on that task and base model."""
    leader_family: str
    chance: float
    """Largest chance that one of the `left` trials reaches the leader."""
    limit: float
    """The study's `search.give_up`."""
    at: str
    """UTC, ISO 8601."""

    @property
    def reason(self) -> str:
        """One sentence for the phase's summary and the report."""
        return (
            f"{self.base_model}/{self.task}/{self.family}: gave up after {self.scored} scored trials (best "
            f"{self.best:.3f}), since the chance that the other {self.left:.3g} reach {self.leader:.3f} of "
            f"{self.leader_family} is at most {self.chance:.2g}; that saved about {duration(self.seconds)}"
        )


def append_stop(study: StudyPaths, stop: Stop) -> None:
    """Write down that a family gave up, so that a later driver of the study does not think otherwise.

    Args:
        study: The study's files.
        stop: What was decided, and from what.
    """
    append_line(study.stops, to_json(stop))


def read_stops(paths: Paths, study: str) -> list[Stop]:
    """The families of a study that gave up, in the order in which they did."""
    return read_records(paths.study(study).stops, Stop)


@dataclass(frozen=True, kw_only=True)
class LostTrial(Record):
    """What one trial lost with an attempt: a line of `StudyPaths.jobs`."""

    event: Literal["lost"] = "lost"
    key: str
    seconds: float = 0.0
    """Its share of the wall seconds that the attempt held a worker."""
    of: int = 1
    """Trials that share them."""
    blamed: bool = True
    """Whether it counts as one of the trial's chances; in lines without a cause it counts for nothing."""
    cause: Cause = Cause.UNSEEN
    reason: str = ""
    at: str = ""
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Lost:
    """An attempt at some trials that ended without their records."""

    configs: Sequence[TrialConfig]
    """Those without a record; may be none."""
    seconds: float
    """Wall seconds that they held a worker, less what trials of the same pack have on record."""
    cause: Cause
    reason: str
    blamed: bool = False
    """Whether it counts as one of the trial's chances: no trial is blamed for what happened to several at once, or
    outside of it."""


def append_lost(lines: Path, lost: Lost) -> None:
    """Write down what was lost: a line and an equal share of the seconds for each trial.

    Args:
        lines: The study's `StudyPaths.jobs`.
        lost: What happened.
    """
    count = len(lost.configs)
    for config in lost.configs:
        line = LostTrial(
            key=config.key,
            seconds=lost.seconds / count,
            of=count,
            blamed=lost.blamed,
            cause=lost.cause,
            reason=lost.reason,
            at=now(),
        )
        append_line(lines, to_json(line))


def append_reopened(lines: Path, result: TrialResult) -> None:
    """Keep what a trial cost that has a record although its site took its worker away, before that record is deleted.

    Args:
        lines: The study's `StudyPaths.jobs`.
        result: The record; where an earlier driver wrote its line and was killed before it deleted it, nothing is added.
    """
    at = result.provenance.started_at
    if not any(lost.key == result.config.key and lost.at == at for lost in read_lost(lines)):
        line = LostTrial(
            key=result.config.key,
            seconds=result.cost.total_s,
            blamed=False,
            cause=Cause.UNSEEN,
            reason=f"a record that said {result.status}: {result.reason}",
            at=at,
        )
        append_line(lines, to_json(line))


def read_lost(lines: Path) -> list[LostTrial]:
    """What a study lost beside its records, in the order in which it happened."""
    return read_records(lines, LostTrial, event="lost")


def lost_attempt(paths: Paths, configs: Sequence[TrialConfig], held_s: float, cause: Cause, reason: str) -> Lost:
    """What no record has of a pack that held a worker.

    Args:
        paths: Where the records are.
        configs: All trials of the pack.
        held_s: Wall seconds.
        cause: What ended it.
        reason: The same in words, for whoever reads the line.
    """
    # a trial of the pack that ended before its worker has charged its seconds to its own record
    results = [find_result(paths, config.key) for config in configs]
    missing = [config for config, result in zip(configs, results, strict=True) if result is None]
    return Lost(missing, max(0.0, held_s - sum(result.cost.total_s for result in results if result)), cause, reason)


def lost_seconds(paths: Paths, study: str) -> dict[str, float]:
    """Wall seconds of lost attempts by trial key, beside what the trial's own record says.

    Of an attempt that its trial went on from, the record has the seconds up to the checkpoint.
    """
    seconds: dict[str, float] = {}
    for lost in read_lost(paths.study(study).jobs):
        seconds[lost.key] = seconds.get(lost.key, 0.0) + lost.seconds
    return {key: max(0.0, lost - _recorded(paths, key)) for key, lost in seconds.items()}


def _recorded(paths: Paths, key: str) -> float:
    """Wall seconds of interrupted attempts that are among those of a trial's record."""
    result = find_result(paths, key)
    resumed = result.provenance.effective.resumed if result else None
    return resumed.seconds if resumed else 0.0


def chances_used(lines: Path) -> dict[str, int]:
    """How many workers each trial has taken down alone and by itself, by key."""
    return Counter(lost.key for lost in read_lost(lines) if lost.blamed and lost.cause.policy.fault == "trial")
