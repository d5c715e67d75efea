"""How far a study is, what it has cost, and what stands in its way: read from its files, by any shell, at any time.

Nothing is written, and no lock is taken that a driver waits for.
"""

from __future__ import annotations

import fcntl
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean, median, stdev
from typing import Any

from harness.cli.progress import RecordedTrial, Records, StudyFiles, read_study
from harness.errors import SpecError, one_line, one_of
from harness.files import duration
from harness.records.bill import Bill, read_halt, total
from harness.records.paths import Paths
from harness.workers.worker import Folders, held_trials

PHASES = ("base", "search", "confirm")
_ENOUGH = 4
"""Trials of a phase that must have ended before the time of the others is taken from theirs."""
_COVERAGE = 0.9
_UNSURE = 3.0
"""Factor by which a plan's times may be off, either way: its formula is meant for the right order of magnitude."""
_SLOW = 1.5
"""A node on which trials take so many times as long as elsewhere is named, where at least `_ENOUGH` ran on it."""
_PERIOD_S = 5.0
_SHOWN = 5
"""Kinds of failures that people are shown."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """Wall seconds until the study's end, as an interval."""

    low_s: float
    high_s: float
    basis: str
    """How it was made."""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Trials that ended without a score in the same way."""

    status: str
    reason: str
    trials: int
    key: str
    """Of one of them."""


@dataclass(frozen=True, kw_only=True)
class SlowNode:
    """A node on which trials take longer than elsewhere."""

    host: str
    trials: int
    times: float
    """How many times as long: the median over its trials, each against the median of its kind."""


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """How far a study is."""

    study: str
    done: int
    running: int
    """Trials that the study asked for and that have no record yet."""
    held: int
    """Those of them that workers hold now; the others wait."""
    left: int | None
    """Trials that it has not asked for yet, by its plan; None without a plan."""
    failed: Mapping[str, int]
    """Failures by status."""
    failures: Sequence[Failures]
    """The same with their reasons, the most frequent first."""
    seconds: float
    """Wall seconds of all its trials, reused ones left out, lost attempts included."""
    hours: float
    """Hours that GPUs were held for them; wall hours where none was."""
    money: float | None
    """Lost attempts at the mean price of its trials; None where nothing has a price."""
    currency: str
    budget: Mapping[str, float]
    """The most that the whole study may take: `gpu_hours`, `money`; empty where it says nothing."""
    lost: Mapping[str, int]
    """Attempts that left no record, by what ended them."""
    steps_done: tuple[str, ...]
    """Which of base, search and confirm are complete."""
    driver: str | None
    """The process that runs it now; None where none does."""
    time_left: Left | None
    """None where it has ended, or where nothing says how long it takes."""
    slow_nodes: Sequence[SlowNode] = ()
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Nodes that got no more workers from a driver, each with the reason."""
    halted: str = ""
    """Why it stopped, where its own budget was reached."""
    verdicts: tuple[str, ...] = ()
    """What its confirmed runs say, a line for each task; none before any."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen until somebody types a command."""
        return self.driver is None or set(PHASES) <= set(self.steps_done)

    def text(self) -> str:
        """A few lines for people."""
        counts = [f"{self.done} done", f"{self.held} running", f"{self.running - self.held} waiting"]
        counts += [] if self.left is None else [f"about {self.left} not asked for yet"]
        counts += [f"{count} {status}" for status, count in self.failed.items()] or ["none failed"]
        lines = [f"{self.study}: {', '.join(counts)}", f"  spent: {self._spent()}"]
        lines.append(f"  complete: {', '.join(self.steps_done) or 'nothing'}; {self._who()}")
        if self.time_left is not None:
            low, high = duration(self.time_left.low_s), duration(self.time_left.high_s)
            lines.append(f"  left: {low} to {high} ({self.time_left.basis})")
        lines += [
            f"  {one.trials} {one.status}: {one.reason} (for example {one.key})" for one in self.failures[:_SHOWN]
        ]
        if more := self.failures[_SHOWN:]:
            lines.append(f"  {sum(one.trials for one in more)} more failed for {len(more)} other reasons: see --json")
        if self.lost:
            lines.append(f"  attempts lost: {', '.join(f'{count} {cause}' for cause, count in self.lost.items())}")
        lines += [
            f"  slow: {one.host}, {one.times:.1f} times as long over {one.trials} trials" for one in self.slow_nodes
        ]
        lines += [f"  excluded: {node}: {reason}" for node, reason in self.excluded.items()]
        lines += [f"  {self.halted}"] if self.halted else []
        return "\n".join([*lines, *(f"  {verdict}" for verdict in self.verdicts)])

    def _spent(self) -> str:
        parts = [f"{self.hours:.3g}{_of(self.budget.get('gpu_hours'))} hours"]
        if self.money is not None or "money" in self.budget:
            parts.append(f"{self.money or 0.0:.2f}{_of(self.budget.get('money'))} {self.currency}")
        return " and ".join(parts)

    def _who(self) -> str:
        return f"{self.driver} runs it" if self.driver else "no driver runs it"


def _of(most: float | None) -> str:
    return "" if most is None else f" of {most:g}"


def looks(paths: Paths, study: str | None, watch: bool) -> Iterator[list[StudyStatus]]:
    """The status now and, to watch it, again and again until no driver runs; looking takes a twentieth of the time at most.

    Args:
        paths: Of the results folder.
        study: Its name; None for all.
        watch: Whether to look more than once.

    Raises:
        SpecError: When the study was never started here.
        StorageError: When a list of a study's trials is damaged.
    """
    records = Records()
    while True:
        began = time.monotonic()
        started = [files.name for files in paths.started()]
        if study is not None and Path(study).stem not in started:
            raise SpecError(one_of("started study", study, started))
        names = [name for name in started if study is None or Path(study).stem == name]
        rows = [_status_of(paths, name, records) for name in names]
        yield rows
        if not watch or all(row.ended for row in rows):
            return
        time.sleep(max(_PERIOD_S, 20 * (time.monotonic() - began)))


def _status_of(paths: Paths, name: str, records: Records) -> StudyStatus:
    study = read_study(paths, name, records)
    files, trials = study.files, study.trials
    known = {trial.key for trial in trials}
    held = (held_trials(Folders(files.queue)) & study.asked) - known
    failed = Counter(str(trial.facts.status) for trial in trials if not trial.facts.status.has_scores)
    bill, budget, halt = _bill(study), study.spec.get("budget", {}), read_halt(files)
    steps = tuple(step for step in PHASES if files.done(step).exists())
    left = _left_by_phase(study, steps)
    without = len(study.asked) - len(known)
    return StudyStatus(
        study=name,
        done=len(trials) - failed.total(),
        running=without,
        held=len(held),
        left=None if left is None else max(0, sum(left.values()) - without),
        failed=dict(failed),
        failures=_failures(trials),
        seconds=bill.seconds,
        hours=bill.hours,
        money=bill.money,
        currency=study.spec.get("prices", {}).get("currency", ""),
        budget={cap: budget[cap] for cap in ("gpu_hours", "money") if budget.get(cap) is not None},
        lost=dict(Counter(str(one.cause) for one in study.lost)),
        steps_done=steps,
        driver=_driver(files.lock),
        time_left=_time_left(study, study.plan, left) if study.plan and left else None,
        slow_nodes=_slow_nodes(trials),
        excluded=study.excluded,
        halted=halt.text if halt else "",
        verdicts=_verdicts(paths, name) if any(trial.role == "confirm" for trial in trials) else (),
    )


def _verdicts(paths: Paths, name: str) -> tuple[str, ...]:
    from harness.report.conclusion import said_now  # takes a second to import

    return tuple(one.text for one in said_now(paths, name))


def _bill(study: StudyFiles) -> Bill:
    """Everything that the study has cost."""
    own = total(trial.facts.bill for trial in study.trials if trial.paid)
    went_on = {trial.key: trial.facts.resumed_s for trial in study.trials}
    lost_s: dict[str, float] = defaultdict(float)
    for one in study.lost:
        lost_s[one.key] += one.seconds
    # of an attempt that its trial went on from, the record has the seconds up to the checkpoint
    seconds = sum(max(0.0, lost - went_on.get(key, 0.0)) for key, lost in lost_s.items())
    price = own.money / own.seconds if own.money is not None and own.seconds else None
    hours = own.hours / own.seconds if own.seconds else 1 / 3600
    return own + Bill(seconds=seconds, hours=seconds * hours, money=None if price is None else seconds * price)


def _left_by_phase(study: StudyFiles, done: Sequence[str]) -> dict[str, int] | None:
    """Trials that have not ended of each phase that is not complete, by the plan; None without one."""
    if study.plan is None:
        return None
    ended = Counter(trial.role for trial in study.trials)
    planned = {phase["step"]: phase["trials"] for phase in study.plan["steps"] if phase["step"] not in done}
    return {phase: max(0, count - ended[phase]) for phase, count in planned.items()}


def _time_left(study: StudyFiles, plan: Mapping[str, Any], left: Mapping[str, int]) -> Left | None:
    """From how long trials of each phase took; of a phase with too few of them, from the plan."""
    workers = max(1, int(plan["workers"]))
    planned = {phase["step"]: phase["seconds"] / max(1, phase["trials"]) for phase in plan["steps"]}
    took: dict[str, list[float]] = defaultdict(list)
    for trial in study.trials:
        if trial.paid:
            took[trial.role].append(trial.facts.bill.seconds)
    phases = {phase: count for phase, count in left.items() if count}
    seen = [phase for phase in phases if len(took[phase]) >= _ENOUGH]
    guessed = [phase for phase in phases if phase not in seen]
    guess = sum(planned[phase] * phases[phase] for phase in guessed)
    intervals = [(guess / _UNSURE, guess * _UNSURE), *(sum_interval(took[phase], phases[phase]) for phase in seen)]
    low, high = (sum(ends) for ends in zip(*intervals, strict=True))
    if not high:
        return None
    trials = sum(len(took[phase]) for phase in seen)
    basis = [f"{_COVERAGE:.0%} interval from {trials} trials"] if seen else []
    basis += [f"{' and '.join(guessed)} from the plan, a factor of {_UNSURE:g} either way"] if guessed else []
    # no order of the trials takes longer than this (Graham 1969, SIAM Journal on Applied Mathematics 17:416-429)
    longest = max((seconds for phase in seen for seconds in took[phase]), default=0.0)
    high_s = high / workers + (1 - 1 / workers) * longest
    return Left(low_s=low / workers, high_s=high_s, basis=f"{', '.join(basis)}; {workers} at a time")


def sum_interval(seen: Sequence[float], count: int) -> tuple[float, float]:
    """A prediction interval for the sum of more values like those that were seen.

    Args:
        seen: At least four values.
        count: How many more.

    Returns:
        Its ends, at least 0: the mean times `count`, give or take Student's t times what so many values and the mean itself
        scatter (Abramowitz and Stegun 1964, 26.7.5, for the quantile of t).
    """
    mean, n = fmean(seen), len(seen)
    z, nu = NormalDist().inv_cdf((1 + _COVERAGE) / 2), n - 1
    t = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    spread = t * stdev(seen) * sqrt(count + count**2 / n)
    return max(0.0, count * mean - spread), count * mean + spread


def _failures(trials: Sequence[RecordedTrial]) -> list[Failures]:
    kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
    for trial in trials:
        if not trial.facts.status.has_scores:
            kinds[str(trial.facts.status), one_line(trial.facts.reason, 300)].append(trial.key)
    most_first = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    return [
        Failures(status=status, reason=reason, trials=len(keys), key=keys[0]) for (status, reason), keys in most_first
    ]


def _slow_nodes(trials: Sequence[RecordedTrial]) -> list[SlowNode]:
    """Nodes on which training takes longer for each token than it does, in the median, for the same family and base model."""
    paces: dict[tuple[str, str, str], list[tuple[str, float]]] = defaultdict(list)
    for trial in trials:
        if trial.facts.pace:
            paces[trial.kind].append((trial.facts.host, trial.facts.pace))
    times: dict[str, list[float]] = defaultdict(list)
    for of_kind in paces.values():
        usual = median(pace for _, pace in of_kind)
        for host, pace in of_kind:
            times[host].append(pace / usual)
    slow = [
        SlowNode(host=host, trials=len(own), times=median(own)) for host, own in times.items() if len(own) >= _ENOUGH
    ]
    return sorted((node for node in slow if node.times >= _SLOW), key=lambda node: -node.times)


def _driver(lock: Path) -> str | None:
    """Who runs the study, as its driver signed the file that it locks."""
    with suppress(OSError), lock.open("rb") as file:
        try:
            fcntl.flock(
                file, fcntl.LOCK_SH | fcntl.LOCK_NB
            )  # let go at once: whoever comes now waits a tenth of a second
        except BlockingIOError:
            return file.read(200).decode(errors="replace") or "a process"
    return None
