"""Where the time went, by family and phase, and how good the forecast was."""

from __future__ import annotations

from collections.abc import Mapping
from math import fsum
from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.figures import WIDTH_IN, draw, figure, rows_axis
from harness.report.forecast import forecast_table
from harness.report.markup import Column, Html, paragraph, table
from harness.report.rows import each_once, known_total, total
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Seconds = Mapping[str, Mapping[str, float]]
"""Trial time by family and phase; every family has every phase."""
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
        phases = _totals(seconds)
        spent = sum(phases.values())
        if not spent:
            return None
        title = "Trial time by family and phase"
        parts = [f"{phase} {own / spent:.0%}" for phase, own in phases.items() if own]
        text = f"{words.seconds(spent)} in all, failed and reused trials included: {', '.join(parts)}."
        size = (WIDTH_IN, 1.2 + 0.3 * len(seconds))
        svg = draw("cost", title, text, size, lambda fig: _paint(fig, seconds))
        return figure(svg, title, text, _table(study, seconds)) + _notes(study) + forecast_table(study)


def _notes(study: StudyData) -> Html:
    """What the figures count where trials did things together, and where attempts were lost."""
    notes = []
    if any((trial.trained_with or 1) > 1 for trial in study.ran):
        notes.append(
            "Where trials did something together, each counts its share of the time, so that the sum is what was spent."
        )
    # A clock that was set back may give an attempt negative seconds.
    if lost := [seconds for seconds in study.lost.values() if seconds > 0]:
        notes.append(
            "Lost time is that of attempts whose worker or machine ended before it wrote a record, or whose record was made "
            "anew: here "
            f"{words.seconds(sum(lost))} of {words.count(len(lost), 'trial')}, in addition to the time on record."
        )
    return paragraph(" ".join(notes), kind="note") if notes else Html("")


def _by_phase(study: StudyData) -> Seconds:
    """The dearest family first; lost attempts are a phase of their own."""
    parts: dict[str, dict[str, list[float]]] = {family: {} for family in sorted({trial.family for trial in study.ran})}
    for trial in study.ran:
        for phase, seconds in trial.seconds.items():
            parts[trial.family].setdefault(phase, []).append(seconds)
    for trial in each_once(study.trials):
        if (lost := study.lost.get(trial.key, 0.0)) > 0:
            parts.setdefault(trial.family, {}).setdefault("lost", []).append(lost)
    phases = [*PHASES, *sorted({phase for own in parts.values() for phase in own} - set(PHASES))]
    # summed exactly, so that families that took equally long keep their order whatever their trials' order
    sums = {family: {phase: fsum(own.get(phase, ())) for phase in phases} for family, own in parts.items()}
    return dict(sorted(sums.items(), key=lambda item: -fsum(item[1].values())))


def _totals(seconds: Seconds) -> dict[str, float]:
    """Seconds by phase over all families."""
    phases = next(iter(seconds.values()), {})
    return {phase: sum(family[phase] for family in seconds.values()) for phase in phases}


def _paint(fig: Figure, seconds: Seconds) -> None:
    import numpy as np
    import seaborn as sns

    axes = fig.subplots()
    # One unit for all bars, the largest in which the longest still has a few units.
    longest = max(sum(family.values()) for family in seconds.values())
    size, unit = next(
        (s, u) for limit, s, u in ((300, 1, "s"), (18_000, 60, "min"), (float("inf"), 3600, "h")) if longest < limit
    )
    phases = list(_totals(seconds))
    left = np.zeros(len(seconds))
    for phase, color in zip(phases, sns.color_palette("colorblind", len(phases)).as_hex(), strict=True):
        own = np.array([family[phase] for family in seconds.values()])
        axes.barh(range(len(seconds)), own / size, left=left / size, color=color, height=0.62, label=phase)
        left = left + own
    rows_axis(axes, list(seconds))
    axes.set_xlabel(f"trial time ({unit})")
    fig.legend(loc="outside lower center", ncols=6)


def _table(study: StudyData, seconds: Seconds) -> Html:
    columns = [Column("Family"), Column("Trials", number=True), Column("Failed", number=True)]
    columns += [Column(phase, number=True) for phase in _totals(seconds)]
    columns += [Column(title, number=True) for title in ("CPU time", "GPU time", "Peak memory", "Energy", "Money")]
    rows = []
    for family, phases in seconds.items():
        trials = [trial for trial in study.ran if trial.family == family]
        energy = known_total(trial.energy_j for trial in trials)
        memory = [trial.peak_memory_bytes for trial in trials if trial.peak_memory_bytes is not None]
        rows.append(
            (
                family,
                f"{len(trials):,}",
                f"{sum(trial.failed for trial in trials):,}",
                *(words.seconds(own) for own in phases.values()),
                words.seconds(total(trial.cpu_s for trial in trials)),
                words.seconds(total(trial.gpu_s for trial in trials)),
                words.size(max(memory, default=None)),
                None if energy is None else f"{energy / 3600:.1f} Wh",
                words.money(known_total(trial.money for trial in trials), study.file.currency),
            )
        )
    return table("Trial time, memory, energy and money by family", columns, rows)
