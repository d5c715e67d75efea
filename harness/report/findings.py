"""What the confirmed results say: who leads, by how much, how sure, and what was forgotten.

One `Comparison` per base model, task and comparability key: scores that may not be ranked together never are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean

from harness.analysis import forgetting
from harness.analysis.statistics import Interval, holm, mean_interval, paired_t_test
from harness.database.rows import grouped
from harness.records.trial import Stage
from harness.report import words
from harness.report.data import StudyData
from harness.report.forgotten import Forgetting, forgotten, with_statuses
from harness.report.rows import ScoreRow, TrialRow, each_once


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
    level: Interval
    gain: Interval | None
    """Towards better, over the base; None without a comparable base score."""
    lost: tuple[Forgetting, ...]
    train_s: float | None
    """Seconds of training one run alone, mean over seeds."""
    peak_memory_bytes: float | None
    money: float | None
    """Of one run alone."""
    failures: int
    """Confirm runs of the family on this base model and task that ended without a score."""
    behind: Interval | None = None
    """How far behind the leader, over shared seeds; None for the leader."""
    p: float | None = None
    """Paired test against the leader, Holm-corrected within the comparison; None for the leader or untestable."""

    @property
    def undetermined(self) -> bool:
        """Whether the difference to the leader is the same in every shared seed, so that no test can judge it."""
        return self.p is None and self.behind is not None and self.behind.n > 1

    @property
    def worst(self) -> Forgetting | None:
        """The skill that lost most, see `analysis.forgetting.worst`."""
        return forgetting.worst(self.lost)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Confirmed pipelines whose scores may be ranked against each other, best first."""

    base_model: str
    task: str
    comparability: str
    unit: words.Unit
    base: float | None
    chance: float | None
    contenders: tuple[Contender, ...]

    @property
    def best(self) -> Contender:
        """The leader."""
        return self.contenders[0]

    @property
    def name(self) -> str:
        """What is compared, in words."""
        return f"{self.task} on {self.base_model}"


@lru_cache(maxsize=1)  # five sections ask for the same study's comparisons
def compare(study: StudyData) -> tuple[Comparison, ...]:
    """Every comparison of a study, in the study file's order of base models and tasks."""
    confirmed = [
        score for score in study.scores if (score.role, score.split, score.status) == ("confirm", "test", "complete")
    ]
    targets = (score for score in confirmed if score.is_target)
    groups = grouped(targets, lambda score: (score.base_model, score.task, score.metric, score.comparability))
    comparisons = _with_statuses(study, [_comparison(study, scores, confirmed) for scores in groups.values()])
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
        contenders=_tested(_numbered(contenders), first.sign),
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
        level=_interval([score.value for score in targets]),
        gain=mean_interval([score.gain for score in targets if score.gain is not None]),
        lost=forgotten(confirmed, keys),
        train_s=_mean(trial.solo_train_s for trial in trials),
        peak_memory_bytes=max(memory, default=None),
        money=_mean(trial.solo_money for trial in trials),
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


def _interval(values: list[float]) -> Interval:
    """Mean and 95% interval over seeds of at least one value."""
    return mean_interval(values) or Interval(mean=values[0], low=None, high=None, n=1)


def _numbered(contenders: list[Contender]) -> list[Contender]:
    """Tell pipelines of one family apart by a number."""
    seen: dict[str, int] = {}
    result = []
    for contender in contenders:
        seen[contender.family] = seen.get(contender.family, 0) + 1
        count = seen[contender.family]
        result.append(contender if count == 1 else replace(contender, label=f"{contender.family} ({count})"))
    return result


def _tested(contenders: list[Contender], sign: int) -> tuple[Contender, ...]:
    """Compare each contender with the leader over shared seeds; Holm-correct within the comparison."""
    leader, *others = contenders
    tested: list[Contender] = []
    p_values: dict[str, float] = {}
    # Only comparisons that could be tested count for the correction: one that was not asked corrects nothing.
    for other in others:
        # Runs of one repetition share their seed, and with it data order and initialisation: they are a pair.
        shared = sorted(set(leader.scores) & set(other.scores))
        test = paired_t_test(
            [sign * leader.scores[rep] for rep in shared], [sign * other.scores[rep] for rep in shared]
        )
        if test and test.p_value is not None:
            p_values[other.label] = test.p_value
        behind = Interval(mean=test.difference, low=test.low, high=test.high, n=test.n) if test else None
        tested.append(replace(other, behind=behind))
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return (leader, *(replace(other, p=corrected.get(other.label)) for other in tested))
