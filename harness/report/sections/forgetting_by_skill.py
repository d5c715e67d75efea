"""What each confirmed pipeline forgot, skill by skill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.analysis.retained import Status
from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import SURFACE, WIDTH_IN, draw, figure, short
from harness.report.findings import compare
from harness.report.forgotten import Forgetting, interval_in_words
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.parts import opened
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Row:
    """A confirmed pipeline, and what it lost by skill."""

    label: str
    task: str
    lost: dict[str, Forgetting]


class ForgettingBySkill(Section):
    """A heat map per base model."""

    summary = "Forgetting of every off-target skill."
    title: ClassVar[str] = "What was forgotten, skill by skill"
    order: ClassVar[int] = 30
    nothing: ClassVar[str] = (
        "No confirmed trial was scored on an off-target skill that the base was scored on too: list skills under "
        "off_target in the study file, then run harness base and harness confirm."
    )

    def render(self, study: StudyData) -> Html | None:
        """Skills in points and skills in other units never share a colour scale."""
        rows: dict[str, list[_Row]] = {}
        for comparison in compare(study):
            for contender in comparison.contenders:
                if contender.lost:
                    lost = {item.skill: item for item in contender.lost}
                    rows.setdefault(comparison.base_model, []).append(_Row(contender.label, comparison.task, lost))
        if not rows:
            return None
        note = paragraph(
            "The base model's test score minus the tuned model's, mean over seeds: positive is lost, negative is gained. "
            "For losses and perplexities the sign is turned round, so that positive is lost there too."
        )
        statuses = paragraph(
            "A skill is lost where the loss is beyond the noise of seeds and items, corrected over all skills and pipelines of "
            f"the study; kept only where a loss of {words.number(study.file.smallest_difference)} points (or of that share of a "
            "token's probability) would have been seen. A score that stands at chance or at the floor of its scale cannot fall: "
            "there the skill is judged by how unlikely the right answers have become, and has no headroom where that is unknown."
        )
        maps = join(_map(model, own) for model, own in rows.items())
        return (
            note
            + statuses
            + join(_counts(model, own) for model, own in rows.items())
            + maps
            + _limits()
            + join(_groups(study))
        )


def _limits() -> Html:
    return paragraph(
        "Items that changed sides are to be held against 0: scored again, the base answers every item as before, since nothing is "
        "drawn by chance (rounding on other hardware aside). Off-target skills are scored when training has ended, so at which "
        "step a skill was lost is not measured, nor what a later stage gave back."
    )


def _counts(model: str, rows: list[_Row]) -> Html:
    """How many skills became what, by pipeline."""
    columns = [
        Column("Pipeline"),
        Column("Tuned for"),
        *(Column(status.capitalize(), number=True) for status in Status),
    ]
    cells = (
        (row.label, row.task, *(str(sum(lost.status is status for lost in row.lost.values())) for status in Status))
        for row in rows
    )
    return table(f"What became of the skills of {model}", columns, cells)


def _groups(study: StudyData) -> Iterator[Html]:
    """What was lost within the groups of an off-target suite."""
    for comparison in compare(study):
        for skill in dict.fromkeys(lost.skill for contender in comparison.contenders for lost in contender.lost):
            yield opened(study, skill, comparison, lost=True)


def _scales(rows: list[_Row]) -> dict[str, list[str]]:
    """Skills by the unit of their forgetting."""
    scales: dict[str, list[str]] = {}
    for lost in (item for row in rows for item in row.lost.values()):
        skills = scales.setdefault(lost.unit.difference_name, [])
        if lost.skill not in skills:
            skills.append(lost.skill)
    return scales


def _map(model: str, rows: list[_Row]) -> Html:
    scales = _scales(rows)
    title = f"What {model} forgot, by pipeline and task"
    first = next(iter(scales))
    candidates = [(row, lost) for row in rows for lost in row.lost.values() if lost.unit.difference_name == first]
    row, most = max(candidates, key=lambda pair: pair[1].estimate.mean)
    text = f"Most was lost of {most.skill} by {row.label} on {row.task}: {most.unit.difference(most.estimate.mean)}."
    width = min(WIDTH_IN, 2.8 + 1.15 * sum(map(len, scales.values())))
    size = (width, 1.1 + 0.45 * len(rows))
    svg = draw(f"forgetting {model}", title, text, size, lambda fig: _paint(fig, rows, scales))
    return figure(svg, title, text, _table(title, rows, scales))


def _paint(fig: Figure, rows: list[_Row], scales: dict[str, list[str]]) -> None:
    panels = fig.subplots(1, len(scales), squeeze=False, width_ratios=[len(skills) for skills in scales.values()])
    for index, (axes, (scale, skills)) in enumerate(zip(panels.flat, scales.items(), strict=True)):
        _panel(axes, rows, skills, index == 0)
        axes.set_xlabel(f"lost ({scale})")


def _panel(axes: Axes, rows: list[_Row], skills: list[str], leftmost: bool) -> None:
    import numpy as np
    import seaborn as sns

    values = np.array([[_value(row.lost.get(skill)) for skill in skills] for row in rows])
    text = np.array([[_text(row.lost.get(skill)) for skill in skills] for row in rows])
    # The scale is symmetric, so that the palette's middle colour means that nothing was lost.
    bound = max(float(np.nanmax(np.abs(values))), 1e-9)
    sns.heatmap(
        values, ax=axes, cmap="PuOr_r", vmin=-bound, vmax=bound, annot=text, fmt="", cbar=False, linewidths=2,
        linecolor="none", xticklabels=[short(skill, 18) for skill in skills], annot_kws={"fontsize": 8.5},
        yticklabels=[short(f"{row.label} · {row.task}", 34) for row in rows] if leftmost else False,
    )  # fmt: skip
    for index in range(1, len(rows)):
        if rows[index].task != rows[index - 1].task:
            axes.axhline(index, color=SURFACE, linewidth=4)
    long = max(map(len, skills)) > 12 and len(skills) > 3
    axes.tick_params(axis="x", rotation=35 if long else 0, length=0)
    axes.tick_params(axis="y", rotation=0)


def _value(lost: Forgetting | None) -> float:
    return lost.estimate.mean * lost.unit.factor if lost else float("nan")


def _text(lost: Forgetting | None) -> str:
    return f"{lost.unit.signed(lost.estimate.mean)}\n{lost.status}" if lost else ""


def _table(caption: str, rows: list[_Row], scales: dict[str, list[str]]) -> Html:
    columns = [
        Column("Pipeline"),
        Column("Tuned for"),
        Column("Skill"),
        Column("Metric"),
        Column("Status"),
        Column("Why"),
    ]
    columns += [Column(name, number=True) for name in ("Base", "Tuned", "Forgetting", "95% interval")]
    columns += [Column(name, number=True) for name in ("Right to wrong", "Wrong to right", "Items", "Seeds")]
    skills = [skill for own in scales.values() for skill in own]
    return table(caption, columns, (_cells(row, skill) for row in rows for skill in skills))


def _cells(row: _Row, skill: str) -> tuple[str | None, ...]:
    lost = row.lost.get(skill)
    if lost is None:
        return (row.label, row.task, skill, *(None,) * 11)
    unit, judged, flips = lost.unit, lost.judged, lost.flips
    noise = judged.measure.noise if judged else None
    said = (lost.status, judged.reason if judged else None)
    scores = (
        unit.level(lost.base),
        unit.level(lost.tuned),
        unit.difference(lost.estimate.mean),
        interval_in_words(lost),
    )
    changed = (words.number(flips.lost), words.number(flips.gained)) if flips else (None, None)
    counts = (words.number(noise.count) if noise else None, words.number(lost.estimate.n))
    return (row.label, row.task, skill, unit.metric.replace("_", " "), *said, *scores, *changed, *counts)
