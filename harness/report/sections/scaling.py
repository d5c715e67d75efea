"""How score and loss change with the size of the base model and with training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from harness.database.rows import grouped
from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import MUTED, WIDTH_IN, draw, figure, log_axis, palette, plain, short
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.rows import ScoreRow
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES_NEEDED = 3
Line = Sequence[tuple[float, float]]
"""Points of a line, by rising x."""


@dataclass(frozen=True, kw_only=True)
class _Means:
    """Mean scores of one task, by the size of the base model."""

    task: str
    unit: words.Unit
    comparability: str
    families: Mapping[tuple[str, int], Sequence[ScoreRow]]
    """Confirmed scores by family and parameters of the base model."""
    base: Mapping[int, float]
    """The base model's own score by its parameters, by rising parameters."""

    @property
    def sizes(self) -> int:
        """Different sizes of base model."""
        return len({parameters for _, parameters in self.families})


class Scaling(Section):
    """Confirmed scores against parameters, and training loss against steps, one line per family or size."""

    summary = "Score and loss against model size and steps."
    title: ClassVar[str] = "How it scales"
    order: ClassVar[int] = 60
    nothing: ClassVar[str] = "No confirmed result tells how score changes with model size."

    def render(self, study: StudyData) -> Html | None:
        """One figure per task that was confirmed on three sizes or more; else what is missing."""
        means = _confirmed(study)
        if not means:
            return None
        parts = [_plot(study, own) for own in means if own.sizes >= SIZES_NEEDED]
        if parts:
            return join(parts)
        most = max(own.sizes for own in means)
        return paragraph(
            f"A scaling curve needs confirmed, comparable results on at least {SIZES_NEEDED} sizes of base model; "
            f"this study has {most}. List {SIZES_NEEDED - most} more under base_models, of one tokenizer, so that their "
            "scores may be compared.",
            kind="absent",
        )


def _parameters(study: StudyData) -> dict[str, int]:
    """Parameters of every base model that a trial recorded them of; one that fails while loading records none."""
    parameters: dict[str, int] = {}
    for trial in study.ran:
        if trial.total_params:
            parameters[trial.base_model] = min(trial.total_params, parameters.get(trial.base_model, trial.total_params))
    return parameters


def _confirmed(study: StudyData) -> list[_Means]:
    """Confirmed scores of every task, metric and comparability key whose base models' sizes are known."""
    parameters = _parameters(study)
    targets = [
        score
        for score in study.scores
        if (score.role, score.split) == ("confirm", "test") and score.is_target and score.base_model in parameters
    ]
    groups = grouped(targets, lambda score: (score.task, score.metric, score.comparability))
    return [_means(scores, parameters) for scores in groups.values()]


def _means(scores: Sequence[ScoreRow], parameters: Mapping[str, int]) -> _Means:
    base: dict[int, float] = {}
    for score in scores:
        if score.base_value is not None:
            # Seeds share the base model and so its score.
            base.setdefault(parameters[score.base_model], score.base_value)
    return _Means(
        task=scores[0].task,
        unit=scores[0].unit,
        comparability=scores[0].comparability,
        families=grouped(scores, lambda score: (score.family, parameters[score.base_model])),
        base=dict(sorted(base.items())),
    )


def _plot(study: StudyData, means: _Means) -> Html:
    unit, families = means.unit, {family for family, _ in means.families}
    title = f"Size of the base model and what it learns of {means.task}"
    caption = (
        "Left: mean confirmed test score; the grey line is the base model. Right: training loss of confirmed runs."
    )
    name = f"scaling {means.task} {means.comparability}"
    described = f"{words.count(means.sizes, 'size')} of base model, {words.count(len(families), 'family', 'families')}."
    losses = _losses(study, means)
    svg = draw(name, title, described, (WIDTH_IN, 3.6), lambda fig: _paint(fig, means, losses))
    columns = [Column("Family"), Column("Parameters", number=True), Column(f"Mean score ({unit.name})", number=True)]
    columns += [Column("Base", number=True), Column("Seeds", number=True)]
    cells = [
        (
            family,
            words.number(parameters),
            unit.digits(fmean(score.value for score in scores)),
            unit.digits(means.base.get(parameters)),
            str(len(scores)),
        )
        for (family, parameters), scores in means.families.items()
    ]
    return figure(svg, title, caption, table(title, columns, cells))


def _losses(study: StudyData, means: _Means) -> Mapping[str, Line]:
    """Mean training loss by step, over families and seeds, for every size of base model."""
    parameters = {score.key: size for (_, size), scores in means.families.items() for score in scores}
    known = [(point, point.loss) for point in study.curves if point.key in parameters and point.loss is not None]
    points = grouped(known, lambda item: (parameters[item[0].key], item[0].step))
    lines: dict[str, list[tuple[float, float]]] = {}
    for (size, step), losses in points.items():
        lines.setdefault(_millions(size), []).append((step, fmean(loss for _, loss in losses)))
    return lines


def _paint(fig: Figure, means: _Means, losses: Mapping[str, Line]) -> None:
    left, right = fig.subplots(1, 2)
    factor = means.unit.factor
    scores: dict[str, list[tuple[float, float]]] = {}
    for (family, parameters), own in means.families.items():
        scores.setdefault(family, []).append((parameters, factor * fmean(score.value for score in own)))
    _lines(left, scores)
    base = [factor * value for value in means.base.values()]
    left.plot(list(means.base), base, color=MUTED, linewidth=1.2, marker=".", label="base model")
    left.set_xscale("log")  # scaling laws are power laws in size: straight on a logarithmic axis, down to their floor
    log_axis(left.xaxis, _millions)
    left.set_xlabel("parameters of the base model (log scale)")
    left.set_ylabel(f"{means.unit.metric.replace('_', ' ')} on the test split ({means.unit.name})")
    left.legend(fontsize=8)
    # Records of runs that were too short for a loss have none.
    if not losses:
        right.set_visible(False)
        return
    _lines(right, losses)
    right.set_xlabel("optimiser steps")
    right.set_ylabel("training loss (nats per supervised token)")
    right.legend(fontsize=8, title="parameters")


def _lines(axes: Axes, lines: Mapping[str, Line]) -> None:
    looks = palette(list(lines))
    for label, points in lines.items():
        color, marker = looks[label]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markeredgewidth=0, label=short(label, 20))


def _millions(value: float) -> str:
    return f"{value / 1e9:.3g} B" if value >= 1e9 else f"{value / 1e6:.3g} M" if value >= 1e5 else plain(value)
