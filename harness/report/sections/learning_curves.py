"""How fast each family learns: validation score along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import GRID, WIDTH_IN, baselines, baselines_in_words, draw, figure, palette, short
from harness.report.markup import Column, Html, table
from harness.report.rows import CurveRow
from harness.report.search_results import Arena, arenas
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIGHLIGHTED = 3
"""Families drawn in colour per panel; the others are grey, so that a dozen stay readable."""
_COLUMNS = 3
Curves = Mapping[str, Sequence[CurveRow]]
"""The scored points of each family's best trial, by rising step; the family that ends best first."""


class LearningCurves(Section):
    """One panel per base model and task, one line per family: its best search trial."""

    summary = "Validation score along training."
    title: ClassVar[str] = "How fast they learn"
    order: ClassVar[int] = 40
    nothing: ClassVar[str] = (
        "No search trial was scored at two points of its training: list several search.fractions in the study file."
    )

    def render(self, study: StudyData) -> Html | None:
        """All panels in one figure."""
        points = _scored_points(study)
        panels = [(arena, _lines(points, arena)) for arena in arenas(study)]
        panels = [(arena, lines) for arena, lines in panels if lines]
        if not panels:
            return None
        title = "Validation score along training, best search trial of each family"
        caption = (
            f"The {HIGHLIGHTED} families that end best are in colour, the others grey; "
            "the horizontal line is the base model."
        )
        known = [(arena.chance, arena.majority) for arena, _ in panels]
        caption += baselines_in_words(
            *("" if any(value is not None for value in kind) else None for kind in zip(*known, strict=True))
        )
        rows = -(-len(panels) // _COLUMNS)
        described = "; ".join(f"{arena.name}: {next(iter(lines))} ends best" for arena, lines in panels)
        size = (WIDTH_IN, 0.3 + 2.9 * rows)
        svg = draw("learning curves", title, described, size, lambda fig: _paint(fig, panels, rows))
        return figure(svg, title, caption, _table(panels))


def _scored_points(study: StudyData) -> Curves:
    """The scored points of every trial, by key."""
    points: dict[str, list[CurveRow]] = {}
    for point in study.curves:
        if point.score is not None:
            points.setdefault(point.key, []).append(point)
    return points


def _lines(points: Curves, arena: Arena) -> Curves:
    """The curve of each family's best trial; only curves of two points or more."""
    curves = {family: points.get(trials[0].key, ()) for family, trials in arena.families().items()}
    sign = -1 if arena.unit.higher_is_better else 1
    lines = [(family, curve) for family, curve in curves.items() if len(curve) >= 2]
    return dict(sorted(lines, key=lambda item: (sign * (item[1][-1].score or 0.0), item[0])))


def _paint(fig: Figure, panels: list[tuple[Arena, Curves]], rows: int) -> None:
    grid = fig.subplots(rows, min(_COLUMNS, len(panels)), squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (arena, lines) in zip(grid.flat, panels, strict=False):
        _panel(axes, arena, lines)


def _panel(axes: Axes, arena: Arena, lines: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    factor, top = arena.unit.factor, list(lines)[:HIGHLIGHTED]
    looks = palette(top)
    # The best are drawn last and lie on top.
    for family, curve in reversed(list(lines.items())):
        color, marker = looks.get(family, (GRID, ""))
        steps, scores = zip(*((point.step, factor * (point.score or 0.0)) for point in curve), strict=True)
        axes.plot(
            steps, scores, color=color, marker=marker, markersize=5, markeredgewidth=0,
            linewidth=1.8 if family in looks else 1.1, label=short(family, 20) if family in looks else None,
        )  # fmt: skip
    if arena.base is not None:
        axes.axhline(arena.base * factor, color=GRID, linewidth=1.6, zorder=1)
    baselines(axes, arena.chance, arena.majority, factor, upright=False)
    axes.set_title(short(arena.name, 30))
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(f"{arena.unit.metric.replace('_', ' ')} ({arena.unit.name})")
    # There is no half step.
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles, labels = axes.get_legend_handles_labels()
    # Drawn last is best, but a legend is read from the top.
    axes.legend(handles[::-1], labels[::-1], loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=1)


def _table(panels: list[tuple[Arena, Curves]]) -> Html:
    columns = [
        Column("Task and base model"),
        Column("Family"),
        Column("Steps", number=True),
        Column("Score", number=True),
    ]
    columns += [Column("Training loss (nats per token)", number=True), Column("Training time alone", number=True)]
    rows = [
        (
            arena.name,
            family,
            words.number(point.step),
            arena.unit.level(point.score),
            words.number(point.loss),
            words.seconds(point.train_seconds),
        )
        for arena, lines in panels
        for family, curve in lines.items()
        for point in curve
    ]
    return table("Learning curves of the best search trial of each family", columns, rows)
