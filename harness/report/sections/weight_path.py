"""What lies between base and tuned weights: the task's score against forgetting on the way from one to the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from harness.analysis.forgetting import Size, size_lost
from harness.database.rows import grouped
from harness.records.scale import Scale
from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import INK, SURFACE, WIDTH_IN, draw, figure, palette, short
from harness.report.findings import places
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.rows import PathRow, ScoreRow
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_SHARE = words.Unit("share", scale=Scale(low=0.0, high=1.0))
"""What was lost of skills on scales of their own: of each scale, or of a token's probability."""
_ROLES = {"confirm": "confirmed runs, test split", "search": "search trials, validation split"}
_MARKS = {"base": "o", "tuned": "s", "kept": "D"}


@dataclass(frozen=True)
class _Place:
    """Scores at one place of the way."""

    weight: float | None
    """0 is the base, 1 the tuned model; None where the record does not say."""
    score: float
    lost: float
    """Mean over skills of what was lost of each since the base, see `analysis.forgetting`."""


@dataclass(frozen=True)
class _Way:
    """One trial's way, from the base on, and where on it the trial stayed."""

    family: str
    trial: str
    walked: tuple[_Place, ...]
    kept: _Place | None

    @property
    def marked(self) -> dict[str, _Place | None]:
        """What has a mark of its own."""
        last = self.walked[-1]
        return {"base": self.walked[0], "tuned": last if last.weight == 1 else None, "kept": self.kept}


Finals = Mapping[tuple[str, str], Sequence[ScoreRow]]
"""The scores of a trial's own weights, by its key and family."""


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """Ways that may be compared: of one base model, task and comparability key."""

    name: str
    unit: words.Unit
    lost_unit: words.Unit
    skills: tuple[str, ...]
    ways: tuple[_Way, ...]


class WeightPath(Section):
    """One figure for confirmed runs and one for search trials, a panel per base model and task, a line per trial."""

    summary = "Score against forgetting between base and tuned weights."
    title: ClassVar[str] = "What lies between base and tuned weights"
    order: ClassVar[int] = 25
    nothing: ClassVar[str] = (
        "No trial was scored on off-target skills between its base and its tuned weights: give a family a retention that "
        "tries such weights, for example interpolation, and list skills under off_target in the study file."
    )

    def render(self, study: StudyData) -> Html | None:
        """Confirmed runs first."""
        shown = [(role, _panels(study, role)) for role in _ROLES]
        parts = [_plot(role, panels) for role, panels in shown if panels]
        if not parts:
            return None
        note = paragraph(
            "Weights between the base's and the tuned ones give models that learned less and forgot less, without further "
            "training. Each line joins one trial's base to its tuned weights: further left is less forgotten, higher is "
            "better. Every trial kept the weights at one point of its line, and all other sections report that point."
        )
        return note + join(parts)


def _panels(study: StudyData, role: str) -> list[_Panel]:
    rows = _longest([row for row in study.paths if row.role == role])
    finals = grouped((score for score in study.scores if score.role == role), lambda s: (s.key, s.family))
    panels: list[tuple[tuple[str, str], _Panel]] = []
    for (model, task), own in grouped(rows, lambda row: (row.base_model, row.task)).items():
        targets = grouped((row for row in own if row.is_target), lambda row: (row.metric, row.comparability))
        for target in targets.values():
            keys = {row.key for row in target}
            panel = _panel(f"{task} on {model}", [row for row in own if row.key in keys], finals)
            if panel.ways:
                panels.append(((model, task), panel))
    order = places(study)
    return [panel for _, panel in sorted(panels, key=lambda item: order.get(item[0], len(order)))]


def _longest(rows: Sequence[PathRow]) -> list[PathRow]:
    """The rows of every trial's last rung: one that went on counts once, at its end."""
    longest: dict[tuple[str, str, str, int], float] = {}
    for row in rows:
        trial = (row.base_model, row.task, row.family, row.number)
        longest[trial] = max(row.fidelity, longest.get(trial, 0.0))
    return [row for row in rows if row.fidelity == longest[row.base_model, row.task, row.family, row.number]]


def _panel(name: str, rows: Sequence[PathRow], finals: Finals) -> _Panel:
    unit = next(row.unit for row in rows if row.is_target)
    others = [row for row in rows if not row.is_target]
    # Shares of their own scales add up, whatever those are; where no skill has one, what has the first skill's metric does.
    shares = [row for row in others if _lost(row, row.value).is_share]
    counted = shares or [row for row in others if row.metric == others[0].metric]
    skills = tuple(dict.fromkeys(row.scored for row in counted))
    members = grouped(rows, lambda row: (row.family, row.number, row.repetition))
    ways = (_way(own, finals, skills) for own in members.values())
    return _Panel(
        name=name,
        unit=unit,
        lost_unit=_SHARE if shares else counted[0].unit if counted else unit,
        skills=skills,
        ways=tuple(way for way in ways if way is not None),
    )


def _way(rows: Sequence[PathRow], finals: Finals, skills: Sequence[str]) -> _Way | None:
    """A trial's way, or None where it has no base to begin with or no skill to forget."""
    first = rows[0]
    base = {row.scored: row.value for row in rows if row.tuned_weight == 0 and row.scored in skills}
    if len(base) < max(1, len(skills)):
        return None
    walked = [_place(weight, own, base) for weight, own in grouped(rows, lambda row: row.tuned_weight).items()]
    # A trial that is several members has its scores several times.
    final: dict[str, ScoreRow] = {}
    for score in finals.get((first.key, first.family), ()):
        final.setdefault(score.scored, score)
    is_scored = any(score.is_target for score in final.values())
    kept = _place(first.kept_weight, list(final.values()), base) if is_scored else None
    trial = f"trial {first.number}" if first.role == "search" else f"repetition {first.repetition}"
    return _Way(family=first.family, trial=trial, walked=tuple(walked), kept=kept)


def _place(weight: float | None, scores: Sequence[PathRow | ScoreRow], base: Mapping[str, float]) -> _Place:
    lost = [_lost(score, base[score.scored]).value for score in scores if score.scored in base]
    target = next(score.value for score in scores if score.is_target)
    return _Place(weight=weight, score=target, lost=fmean(lost))


def _lost(score: PathRow | ScoreRow, base: float) -> Size:
    unit = score.unit
    return size_lost(base, score.value, unit.metric, unit.higher_is_better, unit.scale)


def _plot(role: str, panels: list[_Panel]) -> Html:
    title = f"Task score against mean forgetting from base to tuned weights, {_ROLES[role]}"
    looks = palette(list(dict.fromkeys(way.family for panel in panels for way in panel.ways)))
    skills = list(dict.fromkeys(skill for panel in panels for skill in panel.skills))
    caption = (
        "A circle marks the base, a square the tuned weights, a diamond the weights that were kept. Forgetting is "
        f"{'measured on' if len(skills) == 1 else 'the mean over'} {words.listed(skills)}; points are hundredths of a skill's own "
        "scale, or of a token's probability where it is a perplexity or counts bits."
    )
    counts = [f"{panel.name}: {words.count(len(panel.ways), 'trial')}" for panel in panels]
    rows = -(-len(panels) // _COLUMNS)
    size = (WIDTH_IN, 0.7 + 2.7 * rows)
    colors = {family: color for family, (color, _) in looks.items()}
    svg = draw(f"weight path {role}", title, "; ".join(counts), size, lambda fig: _paint(fig, panels, colors, rows))
    return figure(svg, title, caption, _table(title, panels))


def _paint(fig: Figure, panels: list[_Panel], colors: dict[str, str], rows: int) -> None:
    from matplotlib.lines import Line2D

    grid = fig.subplots(rows, min(_COLUMNS, len(panels)), squeeze=False)
    # The last row of the grid may have more places than panels.
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _lines(axes, panel, colors)
    handles = [Line2D([], [], color=color, label=short(family)) for family, color in colors.items()]
    handles += [Line2D([], [], label=name, linestyle="", **_look(name, INK)) for name in _MARKS]
    fig.legend(handles=handles, loc="outside lower center", ncols=5)


def _look(name: str, color: str) -> dict[str, Any]:
    """The mark of a place."""
    face = color if name == "tuned" else SURFACE
    size = {"base": 7.0, "tuned": 6.0, "kept": 7.5}[name]
    return {"marker": _MARKS[name], "color": color, "markersize": size, "markerfacecolor": face, "markeredgewidth": 1.5}


def _lines(axes: Axes, panel: _Panel, colors: dict[str, str]) -> None:
    across, up = panel.lost_unit.factor, panel.unit.factor
    for way in panel.ways:
        color = colors[way.family]
        points = [(place.lost * across, place.score * up) for place in way.walked]
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.3, marker=".", markersize=3.5, zorder=2)
        for name, place in way.marked.items():
            if place is not None:
                axes.plot([place.lost * across], [place.score * up], zorder=3, **_look(name, color))
    axes.set_title(short(panel.name, 30))
    axes.set_xlabel(f"mean forgetting ({panel.lost_unit.difference_name})")
    axes.set_ylabel(f"{panel.unit.metric.replace('_', ' ')} ({panel.unit.name})")
    axes.margins(0.12)
    # Up is better in every panel.
    if not panel.unit.higher_is_better:
        axes.invert_yaxis()


def _table(caption: str, panels: list[_Panel]) -> Html:
    columns = [Column("Task and base model"), Column("Family"), Column("Trial"), Column("Base", number=True)]
    columns += [Column("Tuned", number=True), Column("Forgetting, tuned", number=True)]
    columns += [Column("Kept at", number=True), Column("Kept", number=True)]
    columns += [Column("Forgetting, kept", number=True)]
    return table(caption, columns, (_cells(panel, way) for panel in panels for way in panel.ways))


def _cells(panel: _Panel, way: _Way) -> tuple[str | None, ...]:
    base, tuned, kept = way.marked.values()

    def score(place: _Place | None) -> str | None:
        return panel.unit.level(place.score) if place else None

    def lost(place: _Place | None) -> str | None:
        return panel.lost_unit.difference(place.lost) if place else None

    stayed = words.number(kept.weight) if kept else None
    return (panel.name, way.family, way.trial, score(base), score(tuned), lost(tuned), stayed, score(kept), lost(kept))
