"""What learning costs: gain against forgetting and against training time, and the pipelines nothing else beats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import INK, WIDTH_IN, draw, figure, log_axis, palette, plain, short
from harness.report.findings import Comparison, Contender, compare
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class _Point:
    contender: Contender
    gain: float
    lost: float | None
    seconds: float | None
    best: bool
    """Not dominated on gain, forgetting and training time."""


class Tradeoff(Section):
    """Learning against forgetting against cost."""

    summary = "Learning against forgetting against cost, and the frontier."
    title: ClassVar[str] = "What learning costs"
    order: ClassVar[int] = 20
    nothing: ClassVar[str] = (
        "No confirmed result has a comparable base score to measure its gain from: run harness base and harness confirm."
    )

    def render(self, study: StudyData) -> Html | None:
        """Two scatter plots per comparison that has gains."""
        shown = [(comparison, _points(comparison)) for comparison in compare(study)]
        parts = [_plot(comparison, points) for comparison, points in shown if points]
        if not parts:
            return None
        note = paragraph(
            "Higher means more learned. A filled mark is on the frontier: no other confirmed pipeline gains at least as much while "
            "forgetting no more and training no longer. Forgetting is shown for the skill that lost most, in points of its scale "
            "or of a token's probability. Training time is what one run takes alone, even if several runs were trained together."
        )
        return note + join(parts)


def _points(comparison: Comparison) -> list[_Point]:
    raw = [
        (c, c.gain.mean, c.worst.size.value if c.worst else None, c.train_s)
        for c in comparison.contenders
        if c.gain is not None
    ]
    costs = [(-gain, *(value for value in (lost, seconds) if value is not None)) for _, gain, lost, seconds in raw]
    return [
        _Point(
            contender=contender,
            gain=gain,
            lost=lost,
            seconds=seconds,
            best=not any(_dominates(other, cost) for other in costs),
        )
        for (contender, gain, lost, seconds), cost in zip(raw, costs, strict=True)
    ]


def _dominates(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    """Whether the first costs are nowhere higher and somewhere lower than the second."""
    # Costs of which one lacks a measurement cannot be compared.
    if len(first) != len(second):
        return False
    return all(a <= b for a, b in zip(first, second, strict=True)) and first != second


def _plot(comparison: Comparison, points: list[_Point]) -> Html:
    title = f"Gain, forgetting and training time on {comparison.name}"
    on_frontier = words.listed([point.contender.label for point in points if point.best])
    svg = draw(
        f"tradeoff {comparison.name} {comparison.comparability}",
        title,
        f"Two scatter plots of {words.count(len(points), 'pipeline')}; on the frontier: {on_frontier}.",
        (WIDTH_IN, 3.3 + 0.2 * ((len(points) - 1) // 4)),
        lambda fig: _paint(fig, comparison, points),
    )
    return figure(svg, title, f"On the frontier: {on_frontier}.", _table(comparison, points))


def _paint(fig: Figure, comparison: Comparison, points: list[_Point]) -> None:
    left, right = fig.subplots(1, 2, sharey=True)
    looks = palette([point.contender.label for point in points])
    worst = next((point.contender.worst for point in points if point.contender.worst), None)
    bounded = worst is not None and worst.size.is_share
    lost, frontier = 100.0 if bounded else 1.0, [point for point in points if point.best]
    for point in points:
        _mark(left, point, point.lost, lost, comparison.unit, looks)
        _mark(right, point, point.seconds, 1.0, comparison.unit, looks)
    left.set_ylabel(f"gain over the base ({comparison.unit.difference_name})")
    left.set_xlabel(
        f"worst forgetting ({'points' if bounded else worst.unit.difference_name}; right is more lost)"
        if worst
        else "forgetting: absent"
    )
    right.set_xlabel("training time of one run (s)")
    times = [point.seconds for point in points if point.seconds]
    for axes in (left, right):
        axes.margins(0.2)
    # A linear axis would press the fast pipelines together at its left end.
    if times and max(times) > 10 * min(times):
        right.set_xscale("log")
        log_axis(right.xaxis, plain)
    elif times:
        right.set_xlim(0, 1.35 * max(times))
    gains = comparison.unit.factor
    _name_frontier(left, [(p.lost * lost, p.gain * gains, p.contender.label) for p in frontier if p.lost is not None])
    _name_frontier(right, [(p.seconds, p.gain * gains, p.contender.label) for p in frontier if p.seconds is not None])
    # One of the two panels may be empty: no forgetting or no time was recorded.
    handles, labels = left.get_legend_handles_labels()
    if not handles:
        handles, labels = right.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)


def _mark(
    axes: Axes, point: _Point, x: float | None, factor: float, unit: words.Unit, looks: dict[str, tuple[str, str]]
) -> None:
    if x is None:
        return
    color, marker = looks[point.contender.label]
    axes.plot(
        [x * factor],
        [point.gain * unit.factor],
        marker,
        color=color,
        markersize=8,
        markerfacecolor=color if point.best else "none",
        markeredgewidth=1.5,
        label=short(point.contender.label),
        zorder=3,
    )
    gain = point.contender.gain
    if gain is not None and gain.low is not None and gain.high is not None:
        axes.plot([x * factor] * 2, [gain.low * unit.factor, gain.high * unit.factor], color=color, linewidth=1.2)


def _name_frontier(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Names beside the frontier's marks, left out where they would lie on another name; the legend has them all."""
    axes.get_xlim(), axes.get_ylim()  # settles the limits, which transData takes as they are
    # Distances are in pixels of the drawing: whether two names overlap does not depend on the axes' units.
    taken: list[tuple[float, float]] = []
    for x, y, label in points:
        place = tuple(axes.transData.transform((x, y)))
        if any(abs(place[0] - other[0]) < 110 and abs(place[1] - other[1]) < 16 for other in taken):
            continue
        taken.append(place)
        axes.annotate(short(label, 16), (x, y), (7, 5), textcoords="offset points", fontsize=8, color=INK)


def _table(comparison: Comparison, points: list[_Point]) -> Html:
    columns = [Column("Pipeline"), Column(f"Gain ({comparison.unit.difference_name})", number=True)]
    columns += [Column("95% interval", number=True), Column("Worst forgetting"), Column("Training", number=True)]
    columns += [Column("Peak memory", number=True), Column("Frontier")]
    rows = []
    for point in points:
        contender, gain = point.contender, point.contender.gain
        worst = contender.worst
        rows.append(
            (
                contender.label,
                comparison.unit.signed(point.gain),
                comparison.unit.span(gain.low, gain.high) if gain else None,
                f"{worst.skill}, {worst.in_words}" if worst else None,
                words.seconds(point.seconds),
                words.size(contender.peak_memory_bytes),
                "yes" if point.best else "no",
            )
        )
    return table(f"Gain, forgetting and cost on {comparison.name}", columns, rows)
