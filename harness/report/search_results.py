"""What the search saw: validation scores of its trials, in arenas within which they may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.database.rows import grouped
from harness.report import words
from harness.report.data import StudyData
from harness.report.findings import places
from harness.report.rows import ScoreRow, TrialRow


@dataclass(frozen=True, eq=False, kw_only=True)
class Arena:
    """The search trials of one base model, task and comparability key."""

    base_model: str
    task: str
    comparability: str
    unit: words.Unit
    base: float | None
    """The base model's validation score."""
    chance: float | None
    majority: float | None
    trials: Sequence[ScoreRow]
    """The score of each configuration at the highest fidelity that it got; full runs first, then by score, best first."""

    @property
    def name(self) -> str:
        """What was searched on, in words."""
        return f"{self.task} on {self.base_model}"

    def families(self) -> Mapping[str, Sequence[ScoreRow]]:
        """Trials by family, in the order of `trials`."""
        return grouped(self.trials, lambda score: score.family)


def arenas(study: StudyData) -> tuple[Arena, ...]:
    """Every arena of a study, in the study file's order."""
    searched = [score for score in study.scores if score.role == "search" and score.is_target]
    groups = grouped(searched, lambda score: (score.base_model, score.task, score.metric, score.comparability))
    order = places(study)
    unordered = [_arena(scores) for scores in groups.values()]
    return tuple(sorted(unordered, key=lambda arena: order.get((arena.base_model, arena.task), len(order))))


def _arena(scores: Sequence[ScoreRow]) -> Arena:
    first = scores[0]
    longest: dict[tuple[str, int], ScoreRow] = {}
    # The longest run counts: a rung's score says less than that of the full budget.
    for score in sorted(scores, key=lambda score: (-score.fidelity, -score.sign * score.value, score.key)):
        longest.setdefault((score.family, score.number), score)
    return Arena(
        base_model=first.base_model,
        task=first.task,
        comparability=first.comparability,
        unit=first.unit,
        base=next((score.base_value for score in scores if score.base_value is not None), None),
        chance=first.chance,
        majority=first.majority,
        trials=list(longest.values()),
    )


def learning_rates(trial: TrialRow) -> dict[str, float]:
    """The searched learning rates of a trial by what sets them apart.

    Returns:
        One rate under an empty name for a pipeline of one stage; else one under `stage 1`, `stage 2` and so on for each
        stage whose rate was searched.
    """
    return {
        _stage(name): float(value)
        for name, value in trial.searched.items()
        if name.split(".")[-1] == "learning_rate" and float(value) > 0  # the axis is logarithmic
    }


def _stage(name: str) -> str:
    """`` for a pipeline of one stage, `stage 2` for `1.learning_rate`."""
    return f"stage {int(name.split('.')[0]) + 1}" if "." in name else ""
