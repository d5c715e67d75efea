"""What training trials together and deciding early saved, and against what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from harness.database.rows import grouped
from harness.report import words
from harness.report.data import StudyData
from harness.report.markup import Column, Html, join, listing, paragraph, table, tag
from harness.report.rows import TrialRow, total
from harness.report.search_results import arenas
from harness.report.sections.base import Section

SHOWN = 20
"""Different reasons listed at most, the most frequent first."""


@dataclass(frozen=True, kw_only=True)
class _Searched:
    """A search trial, its rungs taken together."""

    cell: tuple[str, str, str]
    """Base model, task and family: trials of one cell take comparable time."""
    reached: float
    """Share of the full budget."""
    ended: bool
    """Whether it ended with a score and nothing of it is left to run."""
    train_s: float

    @property
    def pace_s(self) -> float | None:
        """Training seconds of a full run at this trial's pace; None where it does not tell."""
        return self.train_s / self.reached if self.ended and self.train_s > 0 else None


class Speed(Section):
    """Seconds saved by training together, by stopping trials and by giving families up; why trials ran alone."""

    summary = "What training together and early decisions saved."
    title: ClassVar[str] = "What was saved, and against what"
    order: ClassVar[int] = 72
    nothing: ClassVar[str] = (
        "Nothing was saved: no trial was trained together with others, and none was stopped before its full budget."
    )

    def render(self, study: StudyData) -> Html | None:
        """A part for each way of saving that was taken, and the reasons why trials ran alone."""
        own = [trial for trial in study.ran if not trial.reused and (trial.train_s or 0.0) > 0]
        parts = (_together(own), _alone(own), _stopped(study), _gave_up(study))
        return join(part for part in parts if part) if any(parts) else None


def _together(own: Sequence[TrialRow]) -> Html:
    """Time of the trials that trained together, beside what they would have taken one at a time."""
    together = [trial for trial in own if _is_together(trial)]
    if not together:
        return Html("")
    sizes = sorted(Counter(trial.trained_with or 1 for trial in together).items(), reverse=True)
    packs = words.listed([f"{size} at a time ({words.count(number, 'trial')})" for size, number in sizes])
    spent, alone = total(trial.train_s for trial in together), total(trial.solo_train_s for trial in together)
    text = (
        f"{len(together):,} of the {words.count(len(own), 'trial')} that this study trained ran together with others: they "
        f"shared a base model in memory and its passes, {packs}. Their training took {words.seconds(spent)}. Trained one at "
        f"a time by the same loop, they would have taken {words.seconds(alone)}: {_verdict(spent, alone)}."
    )
    note = (
        "The time that a trial would have taken alone is an estimate: the smallest and the largest trial of its pack were "
        "timed alone for a few steps on the same machine. Utilisation is the arithmetic that training needs, divided by "
        "what the machine can compute in the same time at its measured peak."
    )
    return tag("h3", "Training together") + paragraph(text) + _families(own) + paragraph(note, kind="note")


def _is_together(trial: TrialRow) -> bool:
    """Whether a trial trained together with others."""
    return (trial.trained_with or 1) > 1


def _verdict(spent: float, alone: float) -> str:
    saved = words.seconds(abs(alone - spent))
    return f"{saved} saved, {alone / spent:.1f} times as fast" if alone >= spent else f"{saved} lost, not saved"


def _families(own: Sequence[TrialRow]) -> Html:
    columns = [Column("Family"), Column("Trials", number=True), Column("Of them together", number=True)]
    columns += [Column("Training took", number=True), Column("One by one", number=True), Column("Saved", number=True)]
    columns += [Column("Median utilisation", number=True)]
    rows = []
    for family, trials in grouped(own, lambda trial: trial.family).items():
        spent, alone = total(trial.train_s for trial in trials), total(trial.solo_train_s for trial in trials)
        shares = [trial.utilisation for trial in trials if trial.utilisation is not None]
        rows.append(
            (
                family,
                f"{len(trials):,}",
                f"{sum(map(_is_together, trials)):,}",
                words.seconds(spent),
                words.seconds(alone),
                words.minus(f"-{words.seconds(spent - alone)}") if spent > alone else words.seconds(alone - spent),
                _share(median(shares)) if shares else None,
            )
        )
    return table("Training time by family, against the same trials trained one by one by the same loop", columns, rows)


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _alone(own: Sequence[TrialRow]) -> Html:
    """The reasons why trials could not train with others, with their numbers."""
    reasons = Counter(trial.alone for trial in own if trial.alone)
    if not reasons:
        return Html("")
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{words.count(number, 'trial')}: {reason}" for reason, number in ordered[:SHOWN]]
    more = len(ordered) - SHOWN
    return tag("h3", "Why trials ran alone") + listing(lines + ([f"{more:,} more reasons"] if more > 0 else []))


def _stopped(study: StudyData) -> Html:
    """What stopping trials at a rung saved, compared with training every trial to its full budget."""
    trials = _searched(study)
    full_s = _full_seconds(trials)
    stopped = [trial for trial in trials if trial.ended and trial.reached < 1]
    if not stopped:
        return Html("")
    saved = words.seconds(sum((1 - trial.reached) * full_s.get(trial.cell, 0.0) for trial in stopped))
    low, high = (f"{end(trial.reached for trial in stopped):.0%}" for end in (min, max))
    text = (
        f"{len(stopped):,} of {words.count(len(trials), 'search trial')} {'was' if len(stopped) == 1 else 'were'} stopped "
        f"after {low if low == high else f'{low} to {high}'} of their training, because other trials were ahead at that "
        f"point. At the median pace of their families the rest would have taken {saved}. That is what was saved, compared "
        "with training every trial to its full budget."
    )
    return tag("h3", "Stopping trials early") + paragraph(text)


def _searched(study: StudyData) -> list[_Searched]:
    """The study's search trials."""
    members = [trial for trial in study.trials if trial.role == "search"]
    # A trial that a scheduler took over several rungs is several members with one number.
    trials = grouped(members, lambda trial: (trial.base_model, trial.task, trial.family, trial.number))
    searched = []
    for (model, task, family, _), rungs in trials.items():
        reached = max(rung.fidelity or 0.0 for rung in rungs)
        waiting = any(rung.status is None or rung.failed for rung in rungs)
        searched.append(
            _Searched(
                cell=(model, task, family),
                reached=reached,
                ended=reached > 0 and not waiting,
                train_s=total(rung.train_s for rung in rungs),
            )
        )
    return searched


def _full_seconds(trials: Sequence[_Searched]) -> dict[tuple[str, str, str], float]:
    """Expected training seconds of a full run by cell: its trials' median pace."""
    paces: dict[tuple[str, str, str], list[float]] = {}
    for trial in trials:
        if trial.pace_s is not None:
            paces.setdefault(trial.cell, []).append(trial.pace_s)
    return {cell: median(own) for cell, own in paces.items()}


def _gave_up(study: StudyData) -> Html:
    """What stopping the search of some families early saved, compared with using every family's whole budget."""
    if not study.stops:
        return Html("")
    units = {(arena.base_model, arena.task): arena.unit for arena in arenas(study)}
    saved = words.seconds(sum(stop.seconds for stop in study.stops))
    left = words.number(sum(stop.left for stop in study.stops))
    limit = max(stop.limit for stop in study.stops)
    text = (
        f"{words.count(len(study.stops), 'search', 'searches')} of one family on one task stopped before the tuning budget "
        f"was used: the chance that the remaining trials would reach the best family was at most {limit:.0%}. The {left} full "
        f"trials that were not run would have taken about {saved} at the pace of those that were. That is what was saved, "
        "compared with spending every family's whole budget."
    )
    columns = [Column("Family"), Column("Task"), Column("Base model"), Column("Trials scored", number=True)]
    columns += [
        Column("Trials not run", number=True),
        Column("Its best", number=True),
        Column("Best of all", number=True),
    ]
    columns += [Column("Chance to reach it", number=True), Column("Saved", number=True)]
    rows = []
    for stop in study.stops:
        # Where no trial of the study has a score on the task, nothing says what the metric is.
        unit = units.get((stop.base_model, stop.task))
        scores = [unit.level(value) if unit else words.number(value) for value in (stop.best, stop.leader)]
        counts = (f"{stop.scored:,}", words.number(stop.left))
        chance = f"at most {stop.chance:.2g}"
        rows.append((stop.family, stop.task, stop.base_model, *counts, *scores, chance, words.seconds(stop.seconds)))
    return (
        tag("h3", "Giving up on families")
        + paragraph(text)
        + table("Families that the search gave up on", columns, rows)
    )
