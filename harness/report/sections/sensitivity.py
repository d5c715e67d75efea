"""How much the learning rate matters: every search trial's score along it, one band per family."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.report.data import StudyData
from harness.report.figures import ACCENT, GRID, MUTED, WIDTH_IN, draw, figure, log_axis, rows_axis, scientific
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.search_results import Arena, arenas, learning_rates
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]
"""Learning rate and score of each trial, by rising learning rate."""
SHOWN = 200
"""Trials drawn per family and task at most."""


class Sensitivity(Section):
    """Score along the learning-rate axis, from search trials."""

    summary = "Score along the learning rate."
    title: ClassVar[str] = "How much the learning rate matters"
    order: ClassVar[int] = 50
    nothing: ClassVar[str] = "No search trial varied a learning rate and got a score."

    def render(self, study: StudyData) -> Html | None:
        """One figure per base model and task."""
        searched = [trial for trial in study.trials if trial.role == "search"]
        rates = {(trial.key, trial.family, trial.number): learning_rates(trial) for trial in searched}
        shown = [(arena, _bands(arena, rates)) for arena in arenas(study)]
        parts = [_plot(arena, bands) for arena, bands in shown if bands]
        if not parts:
            return None
        note = paragraph(
            "Each dot is a search trial; its height within the family's band is its validation score, and all bands "
            "of a figure share one scale. The best trial is marked, its score stands at the right. A narrow peak means "
            "that the family needs careful tuning."
        )
        return note + join(parts)


def _bands(arena: Arena, rates: dict[tuple[str, str, int], dict[str, float]]) -> dict[str, Points]:
    """By family (and stage): its trials; the family with the best trial first."""
    bands: dict[str, Points] = {}
    for score in arena.trials:
        for stage, rate in rates.get((score.key, score.family, score.number), {}).items():
            bands.setdefault(f"{score.family} {stage}".strip(), []).append((rate, score.value))
    ordered = sorted(bands.items(), key=lambda band: (-_sign(arena) * _best(arena, band[1])[1], band[0]))
    return {name: sorted(points) for name, points in ordered}


def _sign(arena: Arena) -> int:
    return 1 if arena.unit.higher_is_better else -1


def _best(arena: Arena, points: Points) -> tuple[float, float]:
    return max(points, key=lambda point: _sign(arena) * point[1])


def _plot(arena: Arena, bands: dict[str, Points]) -> Html:
    values = [value for points in bands.values() for _, value in points]
    title = f"Learning rate and validation score on {arena.name}"
    caption = f"Each band spans {arena.unit.digits(min(values))} to {arena.unit.level(max(values))}."
    if any(len(points) > SHOWN for points in bands.values()):
        caption += f" Of each family {SHOWN} trials are drawn, evenly along the learning rate."
    described = "; ".join(f"{name} is best at {scientific(_best(arena, points)[0])}" for name, points in bands.items())
    size = (WIDTH_IN, 0.8 + 0.48 * len(bands))
    name = f"sensitivity {arena.name} {arena.comparability}"
    svg = draw(name, title, described, size, lambda fig: _paint(fig, arena, bands, (min(values), max(values))))
    return figure(svg, title, caption, _table(title, arena, bands))


def _paint(fig: Figure, arena: Arena, bands: dict[str, Points], span: tuple[float, float]) -> None:
    axes = fig.subplots()
    low, high = span
    width = (high - low) or 1.0  # all scores may be equal
    dots = [
        (rate, _height(row, value, low, width))
        for row, points in enumerate(bands.values())
        for rate, value in points[:: -(-len(points) // SHOWN)]
    ]
    # The best trial is drawn even where thinning the others left it out.
    best = [_best(arena, points) for points in bands.values()]
    heights = [_height(row, value, low, width) for row, (_, value) in enumerate(best)]
    for row, (rate, value) in enumerate(best):
        axes.annotate(
            f"{arena.unit.digits(value)} at {scientific(rate)}", (1.01, row), xycoords=("axes fraction", "data"),
            va="center", fontsize=8.5, annotation_clip=False,
        )  # fmt: skip
    axes.scatter([x for x, _ in dots], [y for _, y in dots], color=MUTED, s=14, alpha=0.6, linewidth=0, zorder=3)
    axes.plot([rate for rate, _ in best], heights, "o", color=ACCENT, markersize=6, zorder=4)
    axes.hlines(
        [row + 0.42 for row in range(len(bands))], 0, 1, GRID, linewidth=0.7, transform=axes.get_yaxis_transform()
    )
    axes.set_xscale("log")
    rows_axis(axes, list(bands))
    log_axis(axes.xaxis, lambda rate: scientific(rate, 0))
    axes.set_xlabel("learning rate (log scale)")


def _height(row: int, value: float, low: float, width: float) -> float:
    """Where a score lies within its row's band, rows counted downwards."""
    return row + 0.36 - 0.72 * (value - low) / width


def _table(caption: str, arena: Arena, bands: dict[str, Points]) -> Html:
    columns = [Column("Family"), Column("Trials", number=True), Column("Best learning rate", number=True)]
    columns += [Column(f"{label} score ({arena.unit.name})", number=True) for label in ("Best", "Median", "Worst")]
    columns += [Column("Lowest rate tried", number=True), Column("Highest rate tried", number=True)]
    rows = []
    for name, points in bands.items():
        scores = sorted((value for _, value in points), key=lambda value: -_sign(arena) * value)
        middle = (scores[(len(scores) - 1) // 2] + scores[len(scores) // 2]) / 2
        shown = [arena.unit.digits(value) for value in (scores[0], middle, scores[-1])]
        rates = [scientific(points[0][0]), scientific(points[-1][0])]
        rows.append((name, str(len(points)), scientific(_best(arena, points)[0]), *shown, *rates))
    return table(caption, columns, rows)
