"""What the confirmed results say: who leads, by how much, how sure, and what was forgotten.

One `Comparison` per base model, task and comparability key: scores that may not be ranked together never are. All of them
are judged together (`analysis.verdict`), and whoever says what to use reads `Comparison.advice`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from statistics import fmean

from harness.analysis import forgetting
from harness.analysis.accepted import Accepted, Needs, accepted
from harness.analysis.comparison import Question
from harness.analysis.statistics import Interval
from harness.analysis.verdict import Across, Contrast, Verdict, Word, across, judge, untestable
from harness.database.rows import grouped
from harness.records.scale import Scale
from harness.records.trial import Stage
from harness.report import words
from harness.report.data import StudyData
from harness.report.forgotten import Forgetting, forgotten, with_statuses
from harness.report.rows import ScoreRow, TrialRow, each_once
from harness.study.accept import Limits

BASE = "the base model as it is"
"""The base's name among those that are compared; no family has one with spaces."""


class Advice(StrEnum):
    """What follows from a verdict."""

    BEST = "shown to be best"
    EQUAL = "one of several that beat the base and cannot be told apart"
    WITHIN = "the best of those that beat the base within what the study accepts"
    KEEP = "nothing was shown to beat the base"
    OPEN = "nothing can be said"
    """There is no base to compare with, or no test."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A confirmed pipeline within a comparison."""

    label: str
    """Its family; families with several confirmed pipelines get a number."""
    family: str
    keys: frozenset[str]
    """Of its trials."""
    stages: tuple[Stage, ...]
    scores: Mapping[int, float]
    """Test score by repetition."""
    runs: tuple[str, ...]
    """Keys of its trials with a score, by repetition."""
    level: Interval
    gain: Interval | None
    """Towards better, over the base; None without a comparable base score."""
    lost: tuple[Forgetting, ...]
    train_s: float | None
    """Seconds of training one run alone, mean over seeds."""
    peak_memory_bytes: float | None
    money: float | None
    """Of one run alone."""
    reach: tuple[float, ...] = ()
    """By stage, share of the base's weights that was reached; empty where that is not known."""
    leaves_experts: bool = False
    """Whether its base is a mixture of experts, of which no stage reached any."""
    failures: int
    """Confirm runs of the family on this base model and task that ended without a score."""
    contrast: Contrast | None = None
    """The leader against it, the base included; None for the leader, and where nothing could be tested."""
    over_base: Contrast | None = None
    """It against the base; None where that could not be tested."""

    @property
    def worst(self) -> Forgetting | None:
        """The skill that lost most, see `analysis.forgetting.worst`."""
        return forgetting.worst(self.lost)

    @property
    def needs(self) -> Needs:
        """What it forgets and costs."""
        lost = self.worst.size.value if self.worst else None
        return Needs(forgetting=lost, seconds=self.train_s, memory_bytes=self.peak_memory_bytes)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Confirmed pipelines whose scores may be ranked against each other, best first."""

    base_model: str
    task: str
    comparability: str
    unit: words.Unit
    base: float | None
    chance: float | None
    majority: float | None
    """Score of one answer to all items, the one that is most often right; None where that is not known."""
    contenders: tuple[Contender, ...]
    verdict: Verdict
    items: int | None
    """Test items that the verdict is from; None where there is none."""
    limits: Limits = field(default_factory=Limits)
    """What the study accepts."""

    @property
    def accepted(self) -> Accepted:
        """Which contenders the study accepts."""
        return accepted({contender.label: contender.needs for contender in self.contenders}, self.limits)

    @property
    def best(self) -> Contender:
        """The pipeline with the highest mean, whatever that is worth."""
        return self.contenders[0]

    @property
    def advice(self) -> tuple[Advice, Contender | None]:
        """What to do, and the pipeline to use where that is one.

        Only what the study accepts is named. Among pipelines that beat the base and cannot be told apart, it is the one that
        forgets least, then costs least.
        """
        if self.verdict.word is Word.UNTESTABLE or not self.has_base:
            return Advice.OPEN, None
        within = [c for c in self.contenders if c.label in self.accepted.within]
        if self.verdict.use not in (None, BASE) and self.best in within:
            return Advice.BEST, self.best
        winners = [c for c in within if c.over_base is not None and c.over_base.word is Word.BETTER]
        equals = [c for c in winners if c.label in self.verdict.equals]
        if equals:
            return Advice.EQUAL, min(equals, key=_price)
        return (Advice.WITHIN, winners[0]) if winners else (Advice.KEEP, None)

    @property
    def has_base(self) -> bool:
        """Whether the base's answers to the same items are known."""
        return self.verdict.leader == BASE or BASE in self.verdict.against

    @property
    def name(self) -> str:
        """What is compared, in words."""
        return f"{self.task} on {self.base_model}"


def _price(contender: Contender) -> tuple[float, float]:
    """What a pipeline forgets, then what it costs; what nobody measured is not nothing."""
    lost, seconds = contender.needs.forgetting, contender.needs.seconds
    return math.inf if lost is None else lost, math.inf if seconds is None else seconds


@lru_cache(maxsize=1)  # five sections ask for the same study's comparisons
def compare(study: StudyData) -> tuple[Comparison, ...]:
    """Every comparison of a study, in the study file's order of base models and tasks."""
    confirmed = [
        score for score in study.scores if (score.role, score.split, score.status) == ("confirm", "test", "complete")
    ]
    targets = (score for score in confirmed if score.is_target)
    groups = grouped(targets, lambda score: (score.base_model, score.task, score.metric, score.comparability))
    judged = _judged(study, [_comparison(study, scores, confirmed) for scores in groups.values()])
    comparisons = _with_statuses(study, judged)
    order = places(study)
    return tuple(sorted(comparisons, key=lambda c: (order.get((c.base_model, c.task), len(order)), -len(c.contenders))))


def _with_statuses(study: StudyData, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same, with what became of every skill: all are asked about together."""
    suites = [contender.lost for comparison in comparisons for contender in comparison.contenders]
    judged = iter(with_statuses(study, suites))
    return [
        replace(
            comparison, contenders=tuple(replace(contender, lost=next(judged)) for contender in comparison.contenders)
        )
        for comparison in comparisons
    ]


def places(study: StudyData) -> dict[tuple[str, str], int]:
    """Pairs of base model and task, with their position in the study file."""
    pairs = [(model, task) for model in study.file.base_models for task in study.file.tasks]
    return {pair: index for index, pair in enumerate(pairs)}


def _comparison(study: StudyData, targets: Sequence[ScoreRow], confirmed: Sequence[ScoreRow]) -> Comparison:
    first = targets[0]
    pipelines = grouped(targets, lambda score: (score.family, score.pipeline))
    contenders = [_contender(study, scores, confirmed) for scores in pipelines.values()]
    contenders.sort(key=lambda c: (-first.sign * c.level.mean, c.family))
    return Comparison(
        base_model=first.base_model,
        task=first.task,
        comparability=first.comparability,
        unit=first.unit,
        base=first.base_value,
        chance=first.chance,
        majority=first.majority,
        contenders=tuple(_numbered(contenders)),
        verdict=untestable("it was not judged"),
        items=None,
        limits=study.file.limits,
    )


def _contender(study: StudyData, targets: Sequence[ScoreRow], confirmed: Sequence[ScoreRow]) -> Contender:
    first = targets[0]
    keys = {score.key for score in targets}
    trials = each_once(trial for trial in study.trials if trial.key in keys)
    memory = [trial.peak_memory_bytes for trial in trials if trial.peak_memory_bytes is not None]
    return Contender(
        label=first.family,
        family=first.family,
        keys=frozenset(keys),
        stages=trials[0].stages,
        scores={score.repetition: score.value for score in targets},
        runs=tuple({score.repetition: score.key for score in targets}.values()),
        level=_mean_only([score.value for score in targets]),
        gain=_mean_only(gains) if (gains := [score.gain for score in targets if score.gain is not None]) else None,
        lost=forgotten(confirmed, keys),
        train_s=_mean(trial.solo_train_s for trial in trials),
        peak_memory_bytes=max(memory, default=None),
        money=_mean(trial.solo_money for trial in trials),
        reach=trials[0].reach,
        leaves_experts=trials[0].leaves_experts,
        failures=sum(trial.failed for trial in _confirm_runs(study, first)),
    )


def _confirm_runs(study: StudyData, like: ScoreRow) -> list[TrialRow]:
    """All confirm runs of a score's family on its base model and task."""
    place = ("confirm", like.family, like.task, like.base_model)
    return [trial for trial in study.trials if (trial.role, trial.family, trial.task, trial.base_model) == place]


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None where nothing is."""
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def _numbered(contenders: list[Contender]) -> list[Contender]:
    """Tell pipelines of one family apart by a number."""
    seen: dict[str, int] = {}
    result = []
    for contender in contenders:
        seen[contender.family] = seen.get(contender.family, 0) + 1
        count = seen[contender.family]
        result.append(contender if count == 1 else replace(contender, label=f"{contender.family} ({count})"))
    return result


def _mean_only(values: Sequence[float]) -> Interval:
    """Without an interval, which only a verdict can give: seeds alone do not say what other items would do."""
    return Interval(mean=fmean(values), low=None, high=None, n=len(values))


def _judged(study: StudyData, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons with their verdicts, which share one correction."""
    questions = [_question(study, comparison) for comparison in comparisons]
    verdicts = iter(judge([question for question in questions if isinstance(question, Question)]))
    return [
        replace(comparison, verdict=question)
        if isinstance(question, Verdict)
        else _with_verdict(comparison, question, next(verdicts))
        for comparison, question in zip(comparisons, questions, strict=True)
    ]


def _question(study: StudyData, comparison: Comparison) -> Question | Verdict:
    """Who is best? The verdict that it cannot be tested where budgets are unequal or there are no item outcomes."""
    if study.halt is not None:
        return untestable(
            f"the study's budget was reached before its {study.halt.phase} had ended", comparison.best.label
        )
    keys = {contender.label: contender.runs for contender in comparison.contenders}
    gaps = (f"{label}: {gap}" for label, own in keys.items() if (gap := study.outcomes.gap(own, comparison.task)))
    if gap := next(gaps, None):
        return untestable(gap, comparison.best.label)
    unit = comparison.unit
    sign = 1 if unit.higher_is_better else -1
    found = {label: study.outcomes.matrix(own, comparison.task) for label, own in keys.items()}
    scores = {label: sign * matrix for label, matrix in found.items() if matrix is not None}
    base = study.outcomes.base(next(iter(keys.values()))[0], comparison.task)
    if base is not None:
        scores[BASE] = sign * base[None, :]
    return Question(
        scores=scores,
        base=None if base is None else BASE,
        scale=unit.scale if sign > 0 else _turned(unit.scale),
        smallest=unit.scale.width and unit.scale.width * study.file.smallest_difference / 100,
    )


def _turned(scale: Scale) -> Scale:
    return Scale(low=None if scale.high is None else -scale.high, high=None if scale.low is None else -scale.low)


def _with_verdict(comparison: Comparison, question: Question, verdict: Verdict) -> Comparison:
    turned = not comparison.unit.higher_is_better
    contenders = [
        replace(
            contender,
            level=_level(verdict.levels.get(contender.label, contender.level), turned),
            gain=verdict.gains.get(contender.label, contender.gain),
            contrast=verdict.against.get(contender.label),
            over_base=verdict.over_base.get(contender.label),
        )
        for contender in comparison.contenders
    ]
    items = next(iter(question.scores.values())).shape[1]
    return replace(comparison, contenders=tuple(contenders), verdict=verdict, items=items)


def _level(level: Interval, turned: bool) -> Interval:
    """A level in the metric's own direction."""
    if not turned or level.low is None or level.high is None:
        return level
    return replace(level, mean=-level.mean, low=-level.high, high=-level.low)


@lru_cache(maxsize=1)
def overall(study: StudyData) -> Mapping[str, Across]:
    """By base model: who is best on average over the tasks; only where several tasks can be asked together."""
    found: dict[str, Across] = {}
    comparisons = grouped(compare(study), lambda comparison: comparison.base_model)
    for model, own in comparisons.items():
        questions = (_question(study, comparison) for comparison in own)
        joint = across([q for q in questions if isinstance(q, Question)], 0.05 / len(comparisons))
        if joint is not None:
            found[model] = joint
    return found
