"""What lies between base and tuned weights: the task's score against forgetting on the way from one to the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import INK, SURFACE, WIDTH_IN, draw, figure, palette, short
from harness.report.findings import places
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_COLUMNS = 3
_MEMBER = ["family", "number", "repetition"]
_ROLES = {"confirm": "confirmed runs, test split", "search": "search trials, validation split"}
_MARKS = {"base": "o", "tuned": "s", "kept": "D"}


@dataclass(frozen=True)
class _Place:
    """Scores at one place of the way."""

    weight: float | None
    """0 is the base, 1 the tuned model; None where the record does not say."""
    score: float
    lost: float
    """Mean over skills of the base's score minus the place's, with the sign so that positive is lost."""


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


@dataclass(frozen=True)
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
        "No trial scored off-target skills on the way from its base to its tuned weights: give a family a retention that "
        "walks it, such as interpolation, and list skills under off_target in the study file."
    )

    def render(self, study: StudyData) -> Html | None:
        """Confirmed runs first."""
        shown = [(role, _panels(study, role)) for role in _ROLES]
        parts = [_plot(role, panels) for role, panels in shown if panels]
        if not parts:
            return None
        note = paragraph(
            "Between the base's weights and the tuned ones lie models that learned less and forgot less, for no further "
            "training. Each line is one trial's way; left is less lost and up is better. Every trial kept one place on its "
            "way, and everything else in this report is about that place."
        )
        return note + join(parts)


def _panels(study: StudyData, role: str) -> list[_Panel]:
    rows = study.paths[study.paths["role"] == role]
    scores = study.scores[study.scores["role"] == role]
    longest = rows.groupby([*_MEMBER[:2], "task", "base_model"])["fidelity"].transform("max")
    rows = rows[rows["fidelity"] == longest]  # a rung that went on counts once, at its end
    found: dict[tuple[str, str, int], _Panel] = {}
    for (model, task), group in rows.groupby(["base_model", "task"], sort=True):
        own = scores[(scores["base_model"] == model) & (scores["task"] == task)]
        for _, target in group[group["is_target"]].groupby(["metric", "comparability"], sort=True):
            panel = _panel(f"{task} on {model}", group[group["key"].isin(target["key"])], own)
            if panel.ways:
                found[(str(model), str(task), len(found))] = panel
    order = places(study)
    return [found[key] for key in sorted(found, key=lambda key: (order.get(key[:2], len(order)), key[2]))]


def _panel(name: str, rows: DataFrame, scores: DataFrame) -> _Panel:
    targets, others = rows[rows["is_target"]], rows[~rows["is_target"]]
    units = [_unit(row) for row in (targets, others) if len(row)]
    percent = others[[words.Unit(str(metric)).percent for metric in others["metric"]]]
    # Units do not mix: shares count where there are any, else what has the first skill's metric.
    counted = percent if len(percent) else others[others["metric"] == units[-1].metric]
    skills = tuple(dict.fromkeys(counted["scored"].astype(str)))
    ways = (_way(group, scores, skills) for _, group in rows.groupby(_MEMBER, sort=True))
    lost_unit = _unit(counted) if len(counted) else units[0]
    return _Panel(name, units[0], lost_unit, skills, tuple(way for way in ways if way is not None))


def _unit(rows: DataFrame) -> words.Unit:
    first = rows.iloc[0]
    return words.Unit(str(first["metric"]), bool(first["higher_is_better"]))


def _way(rows: DataFrame, scores: DataFrame, skills: Sequence[str]) -> _Way | None:
    """A trial's way, or None where it has no base to begin with or no skill to forget."""
    first = rows.iloc[0]
    base = rows[(rows["tuned_weight"] == 0) & rows["scored"].isin(skills)].set_index("scored")["value"]
    if len(base) < max(1, len(skills)):
        return None
    weights = sorted(set(rows["tuned_weight"].tolist()))
    walked = [_place(weight, rows[rows["tuned_weight"] == weight], base) for weight in weights]
    of_trial = (scores["key"] == first["key"]) & (scores["family"] == first["family"])
    final = scores[of_trial].drop_duplicates("scored")
    weight = json.loads(first["stages"])[-1]["params"].get("tuned_weight")
    kept = _place(weight, final, base) if final["is_target"].any() else None
    searched = first["role"] == "search"
    trial = f"trial {int(first['number'])}" if searched else f"repetition {int(first['repetition'])}"
    return _Way(str(first["family"]), trial, tuple(walked), kept)


def _place(weight: float | None, rows: DataFrame, base: Any) -> _Place:
    score = float(rows.loc[rows["is_target"], "value"].iloc[0])
    skills = rows[rows["scored"].isin(base.index)]
    sign = skills["higher_is_better"].map({True: 1.0, False: -1.0})
    return _Place(weight, score, float((sign * (skills["scored"].map(base) - skills["value"])).mean()))


def _plot(role: str, panels: list[_Panel]) -> Html:
    title = f"Task score against mean forgetting from base to tuned weights, {_ROLES[role]}"
    looks = palette(list(dict.fromkeys(way.family for panel in panels for way in panel.ways)))
    skills = list(dict.fromkeys(skill for panel in panels for skill in panel.skills))
    caption = (
        "A circle is the base, a square the tuned weights, a diamond what was kept. Forgetting is "
        f"{'that of' if len(skills) == 1 else 'the mean over'} {words.listed(skills)}."
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
