"""What a pipeline forgot of each off-target skill, and what became of the skill."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from harness.analysis.forgetting import Size, mean_size, nats_lost, size_lost, size_seen
from harness.analysis.retained import ANSWERS, Flips, Judged, Measure, Status, flips, judge, noise_of
from harness.analysis.statistics import Interval, mean_interval
from harness.database.items import Outcomes
from harness.report import words
from harness.report.data import StudyData
from harness.report.rows import ScoreRow


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What a pipeline forgot of one skill; positive = lost."""

    skill: str
    unit: words.Unit
    estimate: Interval
    size: Size
    """As a share, mean over seeds; by it skills of unlike units are compared."""
    runs: tuple[tuple[str, float, float], ...]
    """Of every run its key, the base's score and its own."""
    chance: float | None
    judged: Judged | None = None
    """What became of the skill; None before all skills of the study were judged together."""
    flips: Flips | None = None
    """Items that changed sides; None where they are not right or wrong, or were not kept."""

    @property
    def metric(self) -> str:
        """The skill's metric."""
        return self.unit.metric

    @property
    def keys(self) -> list[str]:
        """Of its runs."""
        return [key for key, *_ in self.runs]

    @property
    def base(self) -> float:
        """The base's score."""
        return fmean(base for _, base, _ in self.runs)

    @property
    def tuned(self) -> float:
        """Mean score over seeds."""
        return fmean(tuned for *_, tuned in self.runs)

    @property
    def status(self) -> Status | None:
        """What became of the skill."""
        return self.judged.status if self.judged else None

    @property
    def in_words(self) -> str | None:
        """What was lost, in its own unit and as what that means."""
        own = self.unit.surprised(self.base, self.tuned) or self.unit.lost(self.estimate.mean)
        if self.judged is None or self.judged.measure.name != ANSWERS or self.metric == ANSWERS:
            return own
        return f"{own}, but {words.perplexed(self.judged.measure.loss)} by each byte of the right answers"


def forgotten(confirmed: Sequence[ScoreRow], keys: Collection[str]) -> tuple[Forgetting, ...]:
    """What trials lost of each off-target skill with a comparable base score, in the order of their scores.

    Args:
        confirmed: Scores of all confirmed runs.
        keys: Of one pipeline's trials.
    """
    scores: dict[tuple[str, words.Unit], dict[str, ScoreRow]] = {}
    for score in confirmed:
        if score.key in keys and not score.is_target and score.gain is not None:
            scores.setdefault((score.scored, score.unit), {}).setdefault(score.key, score)
    return tuple(_forgetting(skill, unit, list(by_key.values())) for (skill, unit), by_key in scores.items())


def _forgetting(skill: str, unit: words.Unit, scores: Sequence[ScoreRow]) -> Forgetting:
    runs = tuple((score.key, score.base_value, score.value) for score in scores if score.base_value is not None)
    lost = [scores[0].sign * (base - tuned) for _, base, tuned in runs]
    return Forgetting(
        skill=skill,
        unit=unit,
        estimate=mean_interval(lost) or Interval(mean=lost[0], low=None, high=None, n=1),
        size=mean_size(map(_seen, scores)),
        runs=runs,
        chance=scores[0].chance,
    )


def _seen(score: ScoreRow) -> Size:
    """What one run lost, by the answers where its score cannot fall."""
    base = score.value if score.base_value is None else score.base_value
    floor = score.unit.scale.worst(score.higher_is_better) if score.chance is None else score.chance
    bits = (score.base_answer_bits, score.answer_bits)
    nats = None if bits[0] is None or bits[1] is None else math.log(2) * (bits[1] - bits[0])
    headroom = _size(score.unit, base, floor).value if floor is not None and score.unit.scale.width else None
    return size_seen(_size(score.unit, base, score.value), headroom, nats)


def _size(unit: words.Unit, base: float, tuned: float) -> Size:
    return size_lost(base, tuned, unit.metric, unit.higher_is_better, unit.scale)


def with_statuses(study: StudyData, suites: Sequence[Sequence[Forgetting]]) -> list[tuple[Forgetting, ...]]:
    """The same with what became of every skill; all claims of a study are corrected together.

    Args:
        study: Whose items say how sure that is.
        suites: What each pipeline forgot.
    """
    flat = [lost for suite in suites for lost in suite]
    judged = iter(judge([_measures(study, lost) for lost in flat], study.file.smallest_difference / 100))
    return [
        tuple(replace(lost, judged=next(judged), flips=_flips(study.outcomes, lost)) for lost in suite)
        for suite in suites
    ]


def _measures(study: StudyData, lost: Forgetting) -> list[Measure]:
    """The skill's own measure; then how unlikely the right answers are, where that is something else and known."""
    in_nats = not lost.unit.scale.width and _nats(lost.unit, lost.base, lost.tuned) is not None
    outcomes = study.likelihoods if in_nats else study.outcomes
    sign = -1 if lost.unit.higher_is_better and not in_nats else 1
    losses = [
        (_nats(lost.unit, base, tuned) if in_nats else None) or _size(lost.unit, base, tuned).value
        for _, base, tuned in lost.runs
    ]
    pairs = _pairs(outcomes, lost)
    noise = None
    if pairs is not None:
        width = 1.0 if in_nats else lost.unit.scale.width or 1.0
        noise = noise_of(losses, sign * (pairs[1].mean(0) - pairs[0]) / width)
    own = Measure(
        name=lost.metric,
        loss=fmean(losses),
        noise=noise,
        headroom=_headroom(lost, in_nats),
        in_nats=in_nats,
        gap=outcomes.gap(lost.keys, lost.skill) or "the base's items are not the same",
    )
    return [own] if in_nats else [own, *_answers(study.likelihoods, lost)]


def _answers(likelihoods: Outcomes, lost: Forgetting) -> list[Measure]:
    if (pairs := _pairs(likelihoods, lost)) is None:
        return []
    rise = pairs[1] - pairs[0]
    noise = noise_of(list(map(float, rise.mean(1))), rise.mean(0))
    return [Measure(name=ANSWERS, loss=float(rise.mean()), noise=noise, headroom=math.inf, in_nats=True)]


def _pairs(outcomes: Outcomes, lost: Forgetting) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The base's items, shape (items,), and those of the runs, shape (runs, items)."""
    base, tuned = outcomes.base(lost.keys[0], lost.skill), outcomes.matrix(lost.keys, lost.skill)
    return None if base is None or tuned is None else (base, tuned)


def _flips(outcomes: Outcomes, lost: Forgetting) -> Flips | None:
    pairs = _pairs(outcomes, lost)
    return flips(*pairs) if pairs else None


def _nats(unit: words.Unit, base: float, tuned: float) -> float | None:
    return nats_lost(base, tuned, unit.metric, unit.higher_is_better)


def _headroom(lost: Forgetting, in_nats: bool) -> float | None:
    """What could be lost: down to chance, or to the floor of the scale."""
    floor = lost.unit.scale.worst(lost.unit.higher_is_better) if lost.chance is None else lost.chance
    if in_nats:
        return math.inf if floor is None else _nats(lost.unit, lost.base, floor)
    size = None if floor is None else _size(lost.unit, lost.base, floor)
    return size.value if size and size.is_share else None


def in_short(suite: Sequence[Forgetting]) -> str | None:
    """How many skills became what, for one line: `lost: 2 of 6 skills (worst: facts, 47.0 points lost); no headroom: 1`.

    Args:
        suite: What one pipeline forgot.

    Returns:
        None where there are no skills.
    """
    if not suite:
        return None
    by_status = {status: [own for own in suite if own.status is status] for status in Status}
    most = max(by_status.pop(Status.LOST), key=lambda own: own.size.value, default=None)
    head = f"lost: {count_lost(suite)}" + (f" (worst: {most.skill}, {most.in_words})" if most else "")
    return "; ".join([head, *(f"{status}: {len(own)}" for status, own in by_status.items() if own)])


def count_lost(suite: Sequence[Forgetting]) -> str:
    """How many of a pipeline's skills were lost: `2 of 6 skills`; none only where every one was seen to be kept.

    Args:
        suite: What one pipeline forgot; not empty.
    """
    lost, kept = (sum(own.status is status for own in suite) for status in (Status.LOST, Status.KEPT))
    of = f"of {words.count(len(suite), 'skill')}"
    if lost or kept == len(suite):
        return f"{lost or 'none'} {of}"
    return f"not known for {len(suite) - kept} {of}"


def interval_in_words(lost: Forgetting) -> str | None:
    """The 95% interval of a loss over fresh seeds and items; over seeds only where no items were kept; None from one seed.

    Args:
        lost: Of one skill; positive is lost.
    """
    judged, unit, width = lost.judged, lost.unit, lost.unit.scale.width
    if judged is None or judged.low is None or judged.high is None:
        span = unit.span(lost.estimate.low, lost.estimate.high)
        return span and f"{span} (over seeds only)"
    if judged.measure.in_nats:
        return f"{words.number(100 * judged.low)} to {words.number(100 * judged.high)} % less probable"
    if width is None:
        return unit.span(judged.low, judged.high)
    ends = [_size(unit, lost.base, end).value for end in (unit.scale.low, unit.scale.high) if end is not None]
    low, high = (min(max(end, min(ends)), max(ends)) for end in (judged.low, judged.high))  # no score beyond its scale
    return unit.span(low * width, high * width)


def how_sure(suite: Sequence[Forgetting]) -> str:
    """By how many items and seeds the skills were judged.

    Args:
        suite: What one pipeline forgot.
    """
    items = [own.judged.measure.noise.count for own in suite if own.judged and own.judged.measure.noise]
    seeds = max((len(own.runs) for own in suite), default=0)
    if not items:
        return f"{words.count(seeds, 'seed')}, no single items"
    span = f"{min(items):,}" if min(items) == max(items) else f"{min(items):,} to {max(items):,}"
    return f"{span} items a skill, {words.count(seeds, 'seed')}"
