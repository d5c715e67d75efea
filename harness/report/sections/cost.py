"""Where the time went, by family and phase, and how good the forecast was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import WIDTH_IN, draw, figure, rows_axis
from harness.report.forecast import forecast_table
from harness.report.markup import Column, Html, paragraph, table
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

PHASES = ("load", "data", "train", "evaluate", "save")


class Cost(Section):
    """Seconds by phase and family; forecast against what happened."""

    summary = "Where the time went, and forecast versus actual."
    title: ClassVar[str] = "Where the time went"
    order: ClassVar[int] = 70
    nothing: ClassVar[str] = "No trial has recorded a cost yet."

    def render(self, study: StudyData) -> Html | None:
        """A stacked bar per family, then the forecast."""
        seconds = _by_phase(study)
        if seconds.empty or not float(seconds.to_numpy().sum()):
            return None
        total = float(seconds.to_numpy().sum())
        title = "Trial time by family and phase"
        parts = [f"{phase} {seconds[phase].sum() / total:.0%}" for phase in seconds.columns if seconds[phase].sum()]
        text = f"{words.seconds(total)} in all, failed and reused trials included: {', '.join(parts)}."
        size = (WIDTH_IN, 1.2 + 0.3 * len(seconds))
        svg = draw("cost", title, text, size, lambda fig: _paint(fig, seconds))
        return figure(svg, title, text, _table(study, seconds)) + _notes(study) + forecast_table(study)


def _notes(study: StudyData) -> Html:
    """What the figures count where trials did things together, and where attempts were lost."""
    notes = []
    if (study.ran["trained_with"] > 1).any():
        notes.append(
            "Trials that did something together each count their share of it, so that the sum is what was spent."
        )
    if lost := {key: seconds for key, seconds in study.lost.items() if seconds > 0}:
        notes.append(
            f"Lost are attempts whose worker or machine ended before the record was written: here "
            f"{words.seconds(sum(lost.values()))} of {words.count(len(lost), 'trial')}, beside what trials have on record."
        )
    return paragraph(" ".join(notes), kind="note") if notes else Html("")


def _by_phase(study: StudyData) -> DataFrame:
    """Wall seconds, one row per family and one column per phase, the dearest family first; lost attempts included."""
    import pandas as pd

    ran = study.ran
    phases = pd.DataFrame([json.loads(text or "{}") for text in ran["seconds"]], index=ran.index, dtype=float)
    summed = phases.groupby(ran["family"]).sum()
    lost = pd.Series({key: seconds for key, seconds in study.lost.items() if seconds > 0}, dtype=float)
    families = study.trials.drop_duplicates("key").set_index("key")["family"]
    if len(lost):
        summed = summed.add(lost.groupby(families.reindex(lost.index)).sum().to_frame("lost"), fill_value=0.0)
    order = [*PHASES, *sorted(set(summed.columns) - set(PHASES))]
    summed = summed.reindex(columns=order).fillna(0.0)
    return summed.loc[summed.sum(axis=1).sort_values(ascending=False, kind="stable").index]


def _paint(fig: Figure, seconds: DataFrame) -> None:
    import seaborn as sns

    axes = fig.subplots()
    longest = float(seconds.sum(axis=1).max())
    size, unit = next(
        (s, u) for limit, s, u in ((300, 1, "s"), (18_000, 60, "min"), (float("inf"), 3600, "h")) if longest < limit
    )
    left = seconds.iloc[:, 0] * 0.0
    for phase, color in zip(
        seconds.columns, sns.color_palette("colorblind", len(seconds.columns)).as_hex(), strict=True
    ):
        axes.barh(range(len(seconds)), seconds[phase] / size, left=left / size, color=color, height=0.62, label=phase)
        left = left + seconds[phase]
    rows_axis(axes, [str(family) for family in seconds.index])
    axes.set_xlabel(f"trial time ({unit})")
    fig.legend(loc="outside lower center", ncols=6)


def _table(study: StudyData, seconds: DataFrame) -> Html:
    columns = [Column("Family"), Column("Trials", number=True), Column("Failed", number=True)]
    columns += [Column(str(phase), number=True) for phase in seconds.columns]
    columns += [Column(title, number=True) for title in ("CPU time", "GPU time", "Peak memory", "Energy", "Money")]
    rows = []
    for family, phases in seconds.iterrows():
        trials = study.ran[study.ran["family"] == family]
        sums = {
            name: float(trials[name].sum()) if trials[name].notna().any() else None for name in ("energy_j", "money")
        }
        rows.append(
            (
                str(family),
                f"{len(trials):,}",
                f"{int(study.failed['family'].eq(str(family)).sum()):,}",
                *(words.seconds(float(value)) for value in phases),
                words.seconds(float(trials["cpu_s"].sum())),
                words.seconds(float(trials["gpu_s"].sum())),
                words.size(float(trials["peak_memory_bytes"].max())),
                f"{sums['energy_j'] / 3600:.1f} Wh" if sums["energy_j"] is not None else None,
                words.money(sums["money"], study.currency),
            )
        )
    return table("Trial time, memory, energy and money by family", columns, rows)
