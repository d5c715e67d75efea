"""What each confirmed pipeline forgot, skill by skill."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import WIDTH_IN, draw, figure, short
from harness.report.findings import Comparison, Lost
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ForgettingBySkill(Section):
    """A heat map per comparison and unit."""

    summary = "Forgetting of every off-target skill."
    title: ClassVar[str] = "What was forgotten, skill by skill"
    order: ClassVar[int] = 30
    nothing: ClassVar[str] = (
        "No confirmed trial was scored on an off-target skill that the base was scored on too: list skills under "
        "off_target in the study file, then run harness base and harness confirm."
    )

    def render(self, study: StudyData) -> Html | None:
        """Skills in points and skills in other units never share a colour scale."""
        parts = []
        for comparison in study.comparisons:
            units = dict.fromkeys(lost.unit for contender in comparison.contenders for lost in contender.lost)
            scales = dict.fromkeys(unit.difference_name for unit in units)
            parts += [_map(comparison, scale) for scale in scales]
        if not parts:
            return None
        note = paragraph(
            "The base model's test score minus the tuned model's, mean over seeds: positive is lost, negative is gained. "
            "Losses and perplexities count the other way round, so that positive is lost there too."
        )
        return note + join(parts)


def _map(comparison: Comparison, scale: str) -> Html:
    cells = {
        (contender.label, lost.skill): lost
        for contender in comparison.contenders
        for lost in contender.lost
        if lost.unit.difference_name == scale
    }
    labels = [c.label for c in comparison.contenders if any(label == c.label for label, _ in cells)]
    skills = list(dict.fromkeys(skill for _, skill in cells))
    title = f"Forgetting after learning {comparison.name} ({scale})"
    (label, skill), most = max(cells.items(), key=lambda cell: cell[1].estimate.mean)
    text = f"Most was lost of {skill} by {label}: {most.unit.difference(most.estimate.mean)}."
    svg = draw(
        f"forgetting {comparison.name} {comparison.comparability} {scale}",
        title,
        text,
        (min(WIDTH_IN, 2.6 + 1.0 * len(skills)), 1.25 + 0.34 * len(labels)),
        lambda fig: _paint(fig, labels, skills, cells),
    )
    return figure(svg, title, text, _table(title, labels, skills, cells))


def _paint(fig: Figure, labels: list[str], skills: list[str], cells: dict[tuple[str, str], Lost]) -> None:
    import numpy as np
    import seaborn as sns

    axes = fig.subplots()
    factor = next(iter(cells.values())).unit.factor
    values = np.array([[_value(cells.get((label, skill))) * factor for skill in skills] for label in labels])
    text = np.array([[_text(cells.get((label, skill))) for skill in skills] for label in labels])
    bound = max(float(np.nanmax(np.abs(values))), 1e-9)
    sns.heatmap(
        values, ax=axes, cmap="PuOr_r", vmin=-bound, vmax=bound, annot=text, fmt="", cbar=False,
        linewidths=2, linecolor="none", xticklabels=[short(skill, 16) for skill in skills],
        yticklabels=[short(label) for label in labels], annot_kws={"fontsize": 8.5},
    )  # fmt: skip
    axes.tick_params(axis="x", rotation=30 if max(map(len, skills)) * len(skills) > 60 else 0, length=0)
    axes.tick_params(axis="y", rotation=0)
    axes.xaxis.tick_top()


def _value(lost: Lost | None) -> float:
    return lost.estimate.mean if lost else float("nan")


def _text(lost: Lost | None) -> str:
    return lost.unit.signed(lost.estimate.mean) or "" if lost else ""


def _table(caption: str, labels: list[str], skills: list[str], cells: dict[tuple[str, str], Lost]) -> Html:
    columns = [Column("Pipeline"), Column("Skill"), Column("Metric"), Column("Forgetting", number=True)]
    columns += [Column("95% interval", number=True), Column("Seeds", number=True)]
    rows: list[tuple[str | None, ...]] = []
    for label in labels:
        for skill in skills:
            lost = cells.get((label, skill))
            if lost is None:
                rows.append((label, skill, None, None, None, None))
                continue
            estimate, unit = lost.estimate, lost.unit
            shown = (unit.signed(estimate.mean), unit.span(estimate.low, estimate.high), words.number(estimate.n))
            rows.append((label, skill, unit.metric.replace("_", " "), *shown))
    return table(caption, columns, rows)
