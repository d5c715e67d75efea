"""The confirmed ranking: every finalist with its interval, and the paired tests against the leader."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import ACCENT, INK, MUTED, WIDTH_IN, draw, figure, rows_axis
from harness.report.findings import Comparison, Contender
from harness.report.markup import Column, Html, join, paragraph, table, tag
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MethodComparison(Section):
    """Confirmed results only, one ranking for each set of scores that may be compared."""

    summary = "The confirmed ranking, with intervals and paired tests."
    title: ClassVar[str] = "How the methods compare"
    order: ClassVar[int] = 10
    nothing: ClassVar[str] = "No result was confirmed on the test split yet: run harness confirm on this study."

    def render(self, study: StudyData) -> Html | None:
        """A figure and a ranking per comparison."""
        if not study.comparisons:
            return None
        note = paragraph(
            "Families are tuned with equal budgets on the validation split; the finalists below were run again with fresh "
            "seeds and scored once on the test split. p-values are paired over seeds, against the leader, and corrected "
            "with Holm's method within each table."
        )
        return note + join(_ranking(study, comparison) for comparison in study.comparisons)


def _ranking(study: StudyData, comparison: Comparison) -> Html:
    title = f"Test score on {comparison.name}"
    caption = f"Mean over seeds with its 95% interval, {comparison.unit.name}; small dots are single seeds."
    if comparison.base is not None:
        caption += f" The dashed line is the base model ({comparison.unit.level(comparison.base)})."
    name = f"ranking {comparison.name} {comparison.comparability}"
    height = 0.75 + 0.34 * len(comparison.contenders)
    svg = draw(name, title, _described(comparison), (WIDTH_IN, height), lambda fig: _paint(fig, comparison))
    return (
        tag("h3", comparison.name)
        + figure(svg, title, caption)
        + _table(comparison)
        + _unconfirmed(study, comparison)
        + paragraph(f"Comparability key {comparison.comparability}.", kind="note")
    )


def _described(comparison: Comparison) -> str:
    return "; ".join(
        f"{contender.label}: {comparison.unit.level(contender.level.mean)}" for contender in comparison.contenders
    )


def _paint(fig: Figure, comparison: Comparison) -> None:
    import seaborn as sns

    axes, factor = fig.subplots(), comparison.unit.factor
    for row, contender in enumerate(comparison.contenders):
        color, level = (ACCENT if row == 0 else MUTED), contender.level
        values = [factor * value for value in contender.scores.values()]
        sns.scatterplot(x=values, y=[row] * len(values), ax=axes, color=color, s=12, alpha=0.45, linewidth=0, zorder=2)
        if level.low is not None and level.high is not None:
            axes.plot([factor * level.low, factor * level.high], [row, row], color=color, linewidth=2.2, zorder=3)
        axes.plot([factor * level.mean], [row], "o", color=color, markersize=7, zorder=4)
    if comparison.base is not None:
        axes.axvline(factor * comparison.base, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    rows_axis(axes, [contender.label for contender in comparison.contenders])
    better = "higher is better" if comparison.unit.higher_is_better else "lower is better"
    axes.set_xlabel(f"{comparison.unit.metric.replace('_', ' ')} on the test split ({comparison.unit.name}; {better})")


def _table(comparison: Comparison) -> Html:
    columns = [Column("Pipeline"), Column("Rank", number=True), Column(f"Test score ({comparison.unit.name})", number=True)]
    columns += [Column("95% interval", number=True), Column(f"Gain ({comparison.unit.difference_name})", number=True)]
    columns += [Column(f"Behind the leader ({comparison.unit.difference_name})", number=True)]
    columns += [Column("p (Holm)", number=True), Column("Seeds", number=True), Column("Failed runs", number=True)]
    columns += [Column("Training of one run", number=True), Column("Peak memory", number=True)]
    rows = [_row(rank, contender, comparison.unit) for rank, contender in enumerate(comparison.contenders, 1)]
    return table(f"Confirmed ranking on {comparison.name}", columns, rows)


def _row(rank: int, contender: Contender, unit: words.Unit) -> tuple[str | None, ...]:
    level = contender.level
    interval = None if level.low is None else f"{unit.digits(level.low)} to {unit.digits(level.high)}"
    leads = rank == 1
    return (
        contender.label,
        str(rank),
        unit.digits(level.mean),
        interval,
        contender.gain and unit.signed(contender.gain.mean),
        "leads" if leads else contender.behind and unit.digits(contender.behind.mean),
        "leads" if leads else words.p_value(contender.p),
        str(level.n),
        str(contender.failures),
        words.seconds(contender.train_s),
        words.size(contender.peak_memory_bytes),
    )


def _unconfirmed(study: StudyData, comparison: Comparison) -> Html:
    """Families that were searched here but are not in this ranking."""
    here = study.trials[(study.trials["task"] == comparison.task) & (study.trials["base_model"] == comparison.base_model)]
    searched = here[here["role"] == "search"]["family"].unique().tolist()
    missing = sorted(set(map(str, searched)) - {contender.family for contender in comparison.contenders})
    if not missing:
        return Html("")
    return paragraph(
        f"Searched, but not confirmed in this comparison and therefore not ranked: {words.listed(missing)}.", kind="note"
    )
