"""What weakens a verdict: degenerate results, each in one plain sentence that stands beside the verdict.

A condition looks at the `Evidence` for one pipeline and says its sentence, or None where nothing is wrong. Another condition
is another function in `OF_A_PIPELINE`, or in `OF_A_COMPARISON` where it is the same for every pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from harness.database.items import Habit
from harness.report import words
from harness.report.data import StudyData
from harness.report.findings import Comparison, Contender
from harness.report.rows import TrialRow, total
from harness.space import Distribution, Float, Integer, Scalar

ONE_ANSWER = 0.99
"""Share of items from which on one answer counts as the only one."""
CARRIES = 0.5
"""Without a seed that carries the gain, less than this share of the gain is left."""
EDGE = 0.05
"""Share of a range that counts as its end."""
WAITED = 10.0
"""Wall seconds for each second of computing from which on a machine was busy with other things."""
LONGEST = 30
"""Characters of an answer that are shown."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of one confirmed pipeline."""

    comparison: Comparison
    contender: Contender
    habits: Sequence[Habit]
    """Of its runs, where answers were kept."""
    base_habit: Habit | None
    runs: Sequence[TrialRow]
    ranges: dict[str, Distribution]
    """Of the parameters that were searched."""
    all_equal: bool
    """Whether all runs of all pipelines, and the base, have the same score on every item."""

    @property
    def sign(self) -> int:
        """What makes more of the metric better."""
        return 1 if self.comparison.unit.higher_is_better else -1


def doubts(study: StudyData, comparison: Comparison) -> list[str]:
    """Sentences on what weakens what a comparison says.

    Of the pipeline that it advises, or else of the closest, each is whole; the others that it names share a last one.

    Args:
        study: The study.
        comparison: One of it.
    """
    first, *others = (_evidence(study, comparison, contender) for contender in _named(comparison))
    sentences = [condition(first) for condition in (*OF_A_PIPELINE, *OF_A_COMPARISON)]
    weak = {
        one.contender.label: [short for condition, short in OF_A_PIPELINE.items() if condition(one)] for one in others
    }
    if said := [f"{label} ({words.listed(found)})" for label, found in weak.items() if found]:
        sentences.append(f"Of the others that are named, look twice at {words.listed(said)}.")
    return [sentence for sentence in sentences if sentence is not None]


def _named(comparison: Comparison) -> list[Contender]:
    """The pipelines that the first sentences are about: the advised or closest one, the leader, and what it is compared with."""
    verdict, subject = comparison.verdict, comparison.advice[1] or comparison.best
    labels = {verdict.leader, *verdict.equals, *list(verdict.against)[:1]}
    return [
        subject,
        *(
            one
            for one in comparison.contenders
            if one is not subject and (one.label in labels or one.level.mean == comparison.best.level.mean)
        ),
    ]


def _evidence(study: StudyData, comparison: Comparison, contender: Contender) -> Evidence:
    habits = [own for key in contender.runs if (own := study.habits.get((key, comparison.task))) is not None]
    return Evidence(
        comparison=comparison,
        contender=contender,
        habits=[own for own, _ in habits],
        base_habit=habits[0][1] if habits else None,
        runs=[trial for trial in study.ran if trial.key in contender.keys],
        ranges=dict(study.file.searched(contender.family)),
        all_equal=_all_equal(study, comparison),
    )


def _all_equal(study: StudyData, comparison: Comparison) -> bool:
    keys = [key for contender in comparison.contenders for key in contender.runs]
    outcomes, base = study.outcomes.matrix(keys, comparison.task), study.outcomes.base(keys[0], comparison.task)
    return outcomes is not None and base is not None and bool((outcomes == base).all())


def gives_one_answer(evidence: Evidence) -> str | None:
    """A model that always says the same has learned nothing of its items, unless that is right for nearly all of them."""
    stuck = _stuck(evidence, evidence.habits)
    if not stuck:
        return None
    runs = f"{len(stuck)} of {words.count(len(evidence.habits), 'run')}"
    answered = f"{evidence.contender.label} gave one answer, {_quoted(stuck[0])}, to nearly all {stuck[0].items} items in {runs}"
    return f"{answered}{', and so did the base model' if _stuck_base(evidence) else ''}."


def the_base_gives_one_answer(evidence: Evidence) -> str | None:
    """A gain over a base that says the same to all may be no more than having learned to answer otherwise."""
    base = _stuck_base(evidence)
    if not base or _stuck(evidence, evidence.habits):  # `gives_one_answer` says it of both
        return None
    return f"The base model gave one answer, {_quoted(base[0])}, to nearly all {base[0].items} items."


def _stuck_base(evidence: Evidence) -> list[Habit]:
    return _stuck(evidence, [evidence.base_habit] if evidence.base_habit else [])


def _stuck(evidence: Evidence, habits: Sequence[Habit]) -> list[Habit]:
    """Of answering, those that are one answer to everything, which is not right for nearly everything."""
    majority = evidence.comparison.majority or 0.0
    return [habit for habit in habits if habit.share >= ONE_ANSWER and habit.share > majority]


def _quoted(habit: Habit) -> str:
    answer = habit.answer.strip()
    return f"“{answer if len(answer) <= LONGEST else answer[:LONGEST] + '…'}”"


def no_better_than_guessing(evidence: Evidence) -> str | None:
    """A score at or below that of guessing, or of one answer to everything."""
    comparison, level = evidence.comparison, evidence.contender.level.mean
    unit, label = comparison.unit, evidence.contender.label
    if comparison.chance is not None and evidence.sign * (level - comparison.chance) <= 0:
        return f"The score of {label} ({unit.level(level)}) is not above chance ({unit.level(comparison.chance)})."
    if comparison.majority is not None and level <= comparison.majority:
        return (
            f"The score of {label} ({unit.level(level)}) is not above that of giving every item the most frequent right answer "
            f"({unit.level(comparison.majority)})."
        )
    return None


def one_seed_carries_the_gain(evidence: Evidence) -> str | None:
    """A gain of which less than half is left without the best seed."""
    base, scores = evidence.comparison.base, evidence.contender.scores
    if base is None or len(scores) < 2:
        return None
    gains = {seed: evidence.sign * (score - base) for seed, score in scores.items()}
    best, mean = max(gains, key=lambda seed: gains[seed]), fmean(gains.values())
    rest = fmean(gain for seed, gain in gains.items() if seed != best)
    if mean <= 0 or rest >= CARRIES * mean:
        return None
    unit = evidence.comparison.unit
    return (
        f"One of {words.count(len(gains), 'seed')} carries the gain of {evidence.contender.label}: without it, the mean gain is "
        f"{unit.difference(rest)} instead of {unit.difference(mean)}."
    )


def best_value_at_an_edge(evidence: Evidence) -> str | None:
    """A searched value at the end of its range: beyond it may lie a better one."""
    if not evidence.runs:
        return None
    searched = evidence.runs[0].searched
    found = [
        f"{name} {words.number(float(value))} at the {end} end of {distribution}"
        for name, distribution in evidence.ranges.items()
        if name in searched and (end := _end(distribution, value := searched[name])) is not None
    ]
    if not found:
        return None
    return f"{evidence.contender.label} was best with {words.listed(found)}: outside that range it may be better."


def _end(distribution: Distribution, value: Scalar) -> str | None:
    """Which end of its range a number is at."""
    if not isinstance(distribution, Float | Integer) or not isinstance(value, int | float):
        return None
    if not distribution.contains(value) or distribution.low == distribution.high:
        return None
    low, high, at = (
        math.log(number) if distribution.log else float(number)
        for number in (distribution.low, distribution.high, value)
    )
    place = (at - low) / (high - low)
    return "lower" if place <= EDGE else "upper" if place >= 1 - EDGE else None


def the_metric_cannot_move(evidence: Evidence) -> str | None:
    """Nothing can be gained, or nothing tells anybody apart."""
    comparison = evidence.comparison
    best = comparison.unit.scale.best(comparison.unit.higher_is_better)
    if best is not None and comparison.base == best:
        return f"The base model is at the best value of the metric already ({comparison.unit.level(best)}): nothing can be gained."
    if evidence.all_equal:
        return "All runs and the base model have the same score on every single item: this metric tells none of them apart here."
    return None


def the_machine_was_shared(evidence: Evidence) -> str | None:
    """On a processor, wall time is computing time, unless others computed, too."""
    runs = [run for run in evidence.runs if not run.gpu_s and run.cpu_s]
    wall_s, cpu_s = total(run.total_s for run in runs), total(run.cpu_s for run in runs)
    if not runs or wall_s < WAITED * cpu_s:
        return None
    return (
        f"The machine was busy with other things: the runs of {evidence.contender.label} took {words.seconds(wall_s)} for "
        f"{words.seconds(cpu_s)} of computing, so their times say little."
    )


Condition = Callable[[Evidence], str | None]
OF_A_PIPELINE: Mapping[Condition, str] = {
    gives_one_answer: "one answer to nearly all items",
    no_better_than_guessing: "no better than guessing",
    one_seed_carries_the_gain: "one seed carries its gain",
    best_value_at_an_edge: "best at an end of a range",
    the_machine_was_shared: "times from a busy machine",
}
"""With what is said in short of a pipeline that is only named beside another."""
OF_A_COMPARISON: tuple[Condition, ...] = (the_base_gives_one_answer, the_metric_cannot_move)
