"""What training trials together and deciding early saved, and against what."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import FAILED, StudyData
from harness.report.markup import Column, Html, join, listing, paragraph, table, tag
from harness.report.search_results import arenas
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from pandas import DataFrame

CELL = ["base_model", "task", "family"]
"""What a family's trials have in common where their cost is compared."""
SHOWN = 20
"""Different reasons listed at most, the most frequent first."""


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
        own = study.ran[~study.ran["reused"].astype(bool) & (study.ran["train_s"] > 0)]
        parts = (_together(own), _alone(own), _stopped(study), _gave_up(study))
        return join(part for part in parts if part) if any(parts) else None


def _together(own: DataFrame) -> Html:
    """What the trials took that trained together, beside what they would have taken one by one."""
    fused = own[own["trained_with"] > 1]
    if fused.empty:
        return Html("")
    sizes = fused["trained_with"].astype(int).value_counts().sort_index(ascending=False)
    packs = words.listed([f"{size} at a time ({words.count(int(number), 'trial')})" for size, number in sizes.items()])
    spent, alone = float(fused["train_s"].sum()), float(fused["solo_train_s"].sum())
    text = (
        f"{len(fused):,} of the {words.count(len(own), 'trial')} that this study trained shared one base model in memory "
        f"and its passes with others, {packs}. Their training took {words.seconds(spent)}. The same trials trained one by "
        f"one by the same loop would have taken {words.seconds(alone)}: {_verdict(spent, alone)}."
    )
    note = (
        "What a trial would have taken alone is extrapolated from timed steps of the pack's smallest and largest trial, "
        "alone on the same machine. Utilisation is the arithmetic that training needs, over what the machine's measured "
        "matrix peak allows in the time it took."
    )
    return tag("h3", "Training together") + paragraph(text) + _families(own) + paragraph(note, kind="note")


def _verdict(spent: float, alone: float) -> str:
    saved = words.seconds(abs(alone - spent))
    return f"{saved} saved, {alone / spent:.1f} times as fast" if alone >= spent else f"{saved} lost, not saved"


def _families(own: DataFrame) -> Html:
    columns = [Column("Family"), Column("Trials", number=True), Column("Of them together", number=True)]
    columns += [Column("Training took", number=True), Column("One by one", number=True), Column("Saved", number=True)]
    columns += [Column("Median utilisation", number=True)]
    rows = []
    for family, trials in own.groupby("family", sort=True):
        spent, alone = float(trials["train_s"].sum()), float(trials["solo_train_s"].sum())
        rows.append(
            (
                str(family),
                f"{len(trials):,}",
                f"{int((trials['trained_with'] > 1).sum()):,}",
                words.seconds(spent),
                words.seconds(alone),
                words.minus(f"-{words.seconds(spent - alone)}") if spent > alone else words.seconds(alone - spent),
                _share(float(trials["utilisation"].median())),
            )
        )
    return table("Training time by family, against the same trials trained one by one by the same loop", columns, rows)


def _share(value: float) -> str | None:
    if not words.known(value):
        return None
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _alone(own: DataFrame) -> Html:
    """The reasons why trials could not train with others, with their numbers."""
    reasons = own[own["alone"].fillna("") != ""]["alone"].value_counts()
    if reasons.empty:
        return Html("")
    ordered = sorted(reasons.items(), key=lambda item: (-int(item[1]), str(item[0])))
    lines = [f"{words.count(int(number), 'trial')}: {reason}" for reason, number in ordered[:SHOWN]]
    more = len(ordered) - SHOWN
    return tag("h3", "Why trials ran alone") + listing(lines + ([f"{more:,} more reasons"] if more > 0 else []))


def _stopped(study: StudyData) -> Html:
    """What stopping trials at a rung saved, against every trial at its full budget."""
    trials = _searched(study)
    stopped = trials[(trials["reached"] < 1) & trials["ended"]]
    if stopped.empty:
        return Html("")
    saved = words.seconds(float(((1 - stopped["reached"]) * stopped["full_s"]).sum()))
    low, high = f"{stopped['reached'].min():.0%}", f"{stopped['reached'].max():.0%}"
    text = (
        f"{len(stopped):,} of {words.count(len(trials), 'search trial')} {'was' if len(stopped) == 1 else 'were'} stopped "
        f"after {low if low == high else f'{low} to {high}'} of their training, since others were ahead of them there. At the "
        f"median pace of their families the rest of their training would have taken {saved}: that is what was saved, "
        "against every trial at its full budget."
    )
    return tag("h3", "Stopping trials early") + paragraph(text)


def _searched(study: StudyData) -> DataFrame:
    """One row per search trial, its rungs taken together.

    Columns: `reached` (share of the full budget), `ended` (whether it ended with a score, with nothing left to run) and
    `full_s` (expected training seconds of a full run: the family's median pace on that task and base model).
    """
    rows = study.trials[study.trials["role"] == "search"]
    rows = rows.assign(
        waiting=rows["status"].isna(), failed=rows["status"].isin(FAILED), trained=rows["fidelity"].fillna(0.0)
    )
    trials = rows.groupby([*CELL, "number"]).agg(
        reached=("trained", "max"), waiting=("waiting", "any"), failed=("failed", "any"), train_s=("train_s", "sum")
    )
    trials["ended"] = ~trials["waiting"] & ~trials["failed"] & (trials["reached"] > 0)
    pace = (trials["train_s"] / trials["reached"]).where(trials["ended"] & (trials["train_s"] > 0))
    trials["full_s"] = pace.groupby(level=CELL).transform("median")
    return trials


def _gave_up(study: StudyData) -> Html:
    """What families saved that stopped before their budget was used, against every family using all of it."""
    if not study.stops:
        return Html("")
    units = {(arena.base_model, arena.task): arena.unit for arena in arenas(study)}
    saved = words.seconds(sum(stop.seconds for stop in study.stops))
    left = words.number(sum(stop.left for stop in study.stops))
    text = (
        f"{words.count(len(study.stops), 'search', 'searches')} of one family on one task stopped before the tuning budget "
        f"was used, since the chance that the rest of it would reach the best of all families was at most {max(s.limit for s in study.stops):.0%}. "
        f"The {left} full trials that were not run would have taken about {saved} at the pace of those before: that is "
        "what was saved, against every family using its whole budget."
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
        unit = units.get((stop.base_model, stop.task))
        scores = [unit.level(value) if unit else words.number(value) for value in (stop.best, stop.leader)]
        counts = (f"{stop.scored:,}", words.number(stop.left))
        chance = f"at most {stop.chance:.2g}"
        rows.append((stop.family, stop.task, stop.base_model, *counts, *scores, chance, words.seconds(stop.seconds)))
    return tag("h3", "Giving families up") + paragraph(text) + table("Families that gave up", columns, rows)
