"""How score and loss change with the size of the base model and with training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import MUTED, WIDTH_IN, draw, figure, log_axis, palette, plain, short
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

SIZES_NEEDED = 3


class Scaling(Section):
    """Confirmed scores against parameters, and training loss against steps, one line per family or size."""

    summary = "Score and loss against model size and steps."
    title: ClassVar[str] = "How it scales"
    order: ClassVar[int] = 60
    nothing: ClassVar[str] = "No confirmed result tells how score changes with model size."

    def render(self, study: StudyData) -> Html | None:
        """One figure per task that was confirmed on three sizes or more; else what is missing."""
        rows = _confirmed(study)
        if rows.empty:
            return None
        groups = list(rows.groupby(["task", "metric", "comparability"], sort=True))
        parts = [_plot(study, str(task), group) for (task, *_), group in groups if _sizes(group) >= SIZES_NEEDED]
        if parts:
            return join(parts)
        most = max(_sizes(group) for _, group in groups)
        return paragraph(
            f"A scaling curve needs confirmed, comparable results on at least {SIZES_NEEDED} sizes of base model; "
            f"this study has {most}. List {SIZES_NEEDED - most} more under base_models, of one tokenizer, so that their "
            "scores may be compared.",
            kind="absent",
        )


def _confirmed(study: StudyData) -> DataFrame:
    """Confirmed target scores with the size of the base model."""
    known = study.ran[study.ran["total_params"] > 0]  # a trial that failed while loading recorded none
    sizes = known.groupby("base_model")["total_params"].min()
    rows = study.scores[
        (study.scores["role"] == "confirm") & study.scores["is_target"] & (study.scores["split"] == "test")
    ]
    rows = rows.assign(parameters=rows["base_model"].map(sizes))
    return rows[rows["parameters"].notna()]


def _sizes(rows: DataFrame) -> int:
    return int(rows["parameters"].nunique())


def _plot(study: StudyData, task: str, rows: DataFrame) -> Html:
    unit = words.Unit(str(rows.iloc[0]["metric"]), bool(rows.iloc[0]["higher_is_better"]))
    means = rows.groupby(["family", "parameters"], sort=True)["value"].agg(["mean", "count"]).reset_index()
    base = rows.dropna(subset="base_value").groupby("parameters", sort=True)["base_value"].first()
    title = f"Size of the base model and what it learns of {task}"
    caption = (
        "Left: mean confirmed test score; the grey line is the base model. Right: training loss of confirmed runs."
    )
    name = f"scaling {task} {rows.iloc[0]['comparability']}"
    described = f"{words.count(_sizes(rows), 'size')} of base model, {words.count(means['family'].nunique(), 'family', 'families')}."
    svg = draw(
        name, title, described, (WIDTH_IN, 3.6), lambda fig: _paint(fig, unit, means, base, _losses(study, rows))
    )
    columns = [Column("Family"), Column("Parameters", number=True), Column(f"Mean score ({unit.name})", number=True)]
    columns += [Column("Base", number=True), Column("Seeds", number=True)]
    cells = [
        (
            str(row["family"]),
            words.number(row["parameters"]),
            unit.digits(row["mean"]),
            unit.digits(base.get(row["parameters"])),
            str(row["count"]),
        )
        for row in means.to_dict("records")
    ]
    return figure(svg, title, caption, table(title, columns, cells))


def _losses(study: StudyData, rows: DataFrame) -> DataFrame:
    """Mean training loss by base model size and step, over families and seeds."""
    keys = rows.drop_duplicates("key").set_index("key")["parameters"]
    curves = study.curves[study.curves["key"].isin(keys.index) & study.curves["loss"].notna()]
    curves = curves.assign(parameters=curves["key"].map(keys))
    return curves.groupby(["parameters", "step"], sort=True)["loss"].mean().reset_index()


def _paint(fig: Figure, unit: words.Unit, means: DataFrame, base: Series[float], losses: DataFrame) -> None:
    left, right = fig.subplots(1, 2)
    _lines(left, means.assign(y=means["mean"] * unit.factor), "family", "parameters")
    left.plot(base.index, base * unit.factor, color=MUTED, linewidth=1.2, marker=".", label="base model")
    left.set_xscale("log")
    log_axis(left.xaxis, _millions)
    left.set_xlabel("parameters of the base model (log scale)")
    left.set_ylabel(f"{unit.metric.replace('_', ' ')} on the test split ({unit.name})")
    left.legend(fontsize=8)
    if losses.empty:
        right.set_visible(False)
        return
    named = losses.assign(y=losses["loss"], size=[_millions(value) for value in losses["parameters"]])
    _lines(right, named, "size", "step")
    right.set_xlabel("optimiser steps")
    right.set_ylabel("training loss (nats per supervised token)")
    right.legend(fontsize=8, title="parameters")


def _lines(axes: Axes, rows: DataFrame, by: str, x: str) -> None:
    looks = palette(list(dict.fromkeys(map(str, rows[by]))))
    for label, group in rows.groupby(by, sort=False):
        color, marker = looks[str(label)]
        axes.plot(group[x], group["y"], color=color, marker=marker, markeredgewidth=0, label=short(str(label), 20))


def _millions(value: float) -> str:
    return f"{value / 1e9:.3g} B" if value >= 1e9 else f"{value / 1e6:.3g} M" if value >= 1e5 else plain(value)
