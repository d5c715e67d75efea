"""The confirmed ranking: every finalist with its interval and its verdict against the leader."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.analysis.verdict import Word
from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import ACCENT, INK, MUTED, WIDTH_IN, baselines, baselines_in_words, draw, rows_axis
from harness.report.findings import Comparison, Contender, compare
from harness.report.markup import Column, Html, join, paragraph, scrolling, table, tag
from harness.report.parts import opened
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MethodComparison(Section):
    """Confirmed results only, one ranking for each set of scores that may be compared."""

    summary = "The confirmed ranking, with intervals and verdicts."
    title: ClassVar[str] = "How the methods compare"
    order: ClassVar[int] = 10
    nothing: ClassVar[str] = "No result was confirmed on the test split yet: run harness confirm on this study."

    def render(self, study: StudyData) -> Html | None:
        """A figure and a ranking per comparison."""
        if not compare(study):
            return None
        note = paragraph(
            "Families are tuned with equal budgets on the validation split; the finalists below were run again with fresh "
            "seeds and scored once on the test split. Intervals and verdicts allow for other seeds and other test items; all "
            "verdicts of the study together are wrong in at most one of twenty studies in which nothing differs."
        )
        return note + _power(study) + join(_ranking(study, comparison) for comparison in compare(study))


def _power(study: StudyData) -> Html:
    """The differences that the confirm phase could detect, by the plan made beforehand."""
    units = {comparison.task: comparison.unit for comparison in compare(study)}
    limits = study.forecasts.detectable if study.forecasts else ()
    shown = "; ".join(
        f"{limit.task}: {(units[limit.task].difference(limit.difference) or '').lstrip('+')} ({limit.basis})"
        for limit in limits
        if limit.task in units and limit.difference is not None
    )
    if not shown:
        return Html("")
    return paragraph(
        f"By the plan, the confirm phase would probably miss differences smaller than these: {shown}.", kind="note"
    )


def _ranking(study: StudyData, comparison: Comparison) -> Html:
    title = f"Test score on {comparison.name}"
    caption = f"Mean over seeds with its 95% interval, {comparison.unit.name}; small dots are single seeds."
    if comparison.base is not None:
        caption += f" The dashed line is the base model ({comparison.unit.level(comparison.base)})."
    caption += baselines_in_words(comparison.unit.level(comparison.chance), comparison.unit.level(comparison.majority))
    # One task may have several rankings, each with a comparability key, and ids must be unique within the page.
    name = f"ranking {comparison.name} {comparison.comparability}"
    height = 0.75 + 0.34 * len(comparison.contenders)
    svg = draw(name, title, _described(comparison), (WIDTH_IN, height), lambda fig: _paint(fig, comparison))
    return (
        tag("h3", _finding(comparison))
        + tag("figure", tag("figcaption", tag("span", caption)), scrolling(svg, title), _table(comparison))
        + opened(study, comparison.task, comparison)
        + _unconfirmed(study, comparison)
        + _gave_up(study, comparison)
        + paragraph(f"Comparability key {comparison.comparability}.", kind="note")
    )


def _finding(comparison: Comparison) -> str:
    """The ranking's headline: who leads, and whether the runner-up can be told from it."""
    best, others = comparison.best, comparison.contenders[1:]
    if not others:
        return f"On {comparison.name}, only {best.label} was confirmed"
    verdict = comparison.verdict
    if verdict.word is Word.UNTESTABLE:
        return f"On {comparison.name}, {best.label} leads, but whether by chance cannot be judged: {verdict.reason}"
    if verdict.use is None:
        equals = [name for name in verdict.equals if name != verdict.leader]
        return f"On {comparison.name}, {verdict.leader} leads, but not distinguishably from {words.listed(equals)}"
    lead = comparison.unit.digits(next(iter(verdict.against.values())).difference.mean)
    return f"On {comparison.name}, {verdict.leader} leads by {lead} {comparison.unit.difference_name}"


def _described(comparison: Comparison) -> str:
    return "; ".join(
        f"{contender.label}: {comparison.unit.level(contender.level.mean)}" for contender in comparison.contenders
    )


def _paint(fig: Figure, comparison: Comparison) -> None:
    import seaborn as sns

    axes, factor = fig.subplots(), comparison.unit.factor
    seeds = [(factor * value, row) for row, c in enumerate(comparison.contenders) for value in c.scores.values()]
    # No jitter: the height of a dot would seem to mean something, and pages would differ from run to run.
    sns.stripplot(
        x=[value for value, _ in seeds], y=[row for _, row in seeds], orient="h", native_scale=True, jitter=False,
        ax=axes, color=MUTED, size=3.5, alpha=0.5, zorder=2,
    )  # fmt: skip
    for row, contender in enumerate(comparison.contenders):
        color, level = (ACCENT if row == 0 else MUTED), contender.level
        if level.low is not None and level.high is not None:
            axes.plot([factor * level.low, factor * level.high], [row, row], color=color, linewidth=2.2, zorder=3)
        axes.plot([factor * level.mean], [row], "o", color=color, markersize=7, zorder=4)
    if comparison.base is not None:
        axes.axvline(factor * comparison.base, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    baselines(axes, comparison.chance, comparison.majority, factor, upright=True)
    rows_axis(axes, [contender.label for contender in comparison.contenders])
    better = "higher is better" if comparison.unit.higher_is_better else "lower is better"
    axes.set_xlabel(f"{comparison.unit.metric.replace('_', ' ')} on the test split ({comparison.unit.name}; {better})")


def _table(comparison: Comparison) -> Html:
    columns = [Column("Pipeline"), Column("Rank", number=True), Column(f"Score ({comparison.unit.name})", number=True)]
    columns += [Column("95% interval", number=True), Column(f"Gain ({comparison.unit.difference_name})", number=True)]
    columns += [Column(f"Behind ({comparison.unit.difference_name})", number=True)]
    columns += [Column("Verdict"), Column("Seeds", number=True), Column("Failed runs", number=True)]
    rows = [_row(rank, contender, comparison.unit) for rank, contender in enumerate(comparison.contenders, 1)]
    return table(f"Confirmed ranking on {comparison.name}", columns, rows)


def _row(rank: int, contender: Contender, unit: words.Unit) -> tuple[str | None, ...]:
    level = contender.level
    interval = None if level.low is None else f"{unit.digits(level.low)} to {unit.digits(level.high)}"
    contrast = contender.contrast
    return (
        contender.label,
        str(rank),
        unit.digits(level.mean),
        interval,
        unit.signed(contender.gain.mean) if contender.gain else None,
        unit.digits(contrast.difference.mean) if contrast else "leads" if rank == 1 else None,
        contrast.word if contrast else "leads" if rank == 1 else None,
        str(level.n),
        str(contender.failures),
    )


def _unconfirmed(study: StudyData, comparison: Comparison) -> Html:
    """Families that were searched here but are not in this ranking."""
    confirmed = {contender.family for contender in comparison.contenders}
    place = ("search", comparison.base_model, comparison.task)
    searched = {trial.family for trial in study.trials if (trial.role, trial.base_model, trial.task) == place}
    missing = sorted(searched - confirmed)
    if not missing:
        return Html("")
    return paragraph(
        f"Searched, but not confirmed in this comparison and therefore not ranked: {words.listed(missing)}.",
        kind="note",
    )


def _gave_up(study: StudyData, comparison: Comparison) -> Html:
    """Families that the search stopped before their budget was used: the rest was unlikely to reach the best."""
    here = [s for s in study.stops if (s.base_model, s.task) == (comparison.base_model, comparison.task)]
    if not here:
        return Html("")
    listed = words.listed([f"{stop.family} (after {words.count(stop.scored, 'scored trial')})" for stop in here])
    return paragraph(
        f"The search gave up on these families before their tuning budget was used: {listed}.", kind="note"
    )
