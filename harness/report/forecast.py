"""What `plan` predicted, beside what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from harness.report import words
from harness.report.data import StudyData
from harness.report.markup import Column, Html, paragraph, table, tag
from harness.report.rows import TrialRow, total
from harness.report.study_files import FamilyForecast, PhaseForecast


def forecast_table(study: StudyData) -> Html:
    """Forecast and actual by phase and by family, from the study's `plan.json`."""
    heading = tag("h3", "Forecast and actual")
    if study.forecasts is None:
        text = "No forecast was kept for this study: harness search keeps one as plan.json when it starts."
        return heading + paragraph(text, kind="absent")
    return heading + _phases(study, study.forecasts.phases) + _families(study, study.forecasts.families)


def _phases(study: StudyData, forecasts: Sequence[PhaseForecast]) -> Html:
    columns = [Column("Phase"), Column("Trials forecast", number=True), Column("Trials run", number=True)]
    columns += [Column("Time forecast", number=True), Column("Time taken", number=True), Column("Ratio", number=True)]
    rows = []
    for forecast in forecasts:
        trials = [trial for trial in study.ran if trial.role == forecast.phase]
        taken = total(trial.total_s for trial in trials) if trials else None
        counts = (words.number(forecast.trials), f"{len(trials):,}")
        rows.append((forecast.phase, *counts, *_compared(forecast.seconds, taken)))
    return table("Trials and trial time by phase; a reused trial counts with the time that it once took", columns, rows)


def _families(study: StudyData, forecasts: Mapping[str, FamilyForecast]) -> Html:
    columns = [Column("Family"), Column("Time forecast", number=True), Column("Time taken", number=True)]
    columns += [Column("Ratio", number=True), Column("Memory forecast", number=True)]
    columns += [Column("Memory taken", number=True), Column("Forecast from")]
    rows = []
    for family, forecast in forecasts.items():
        trials = _full_trials(study, family)
        taken = fmean(trial.total_s or 0.0 for trial in trials) if trials else None
        memory = max((trial.peak_memory_bytes or 0 for trial in trials), default=None)
        sizes = (words.size(forecast.peak_memory_bytes), words.size(memory))
        rows.append((family, *_compared(forecast.seconds, taken), *sizes, forecast.basis or None))
    return table("One full search trial of each family, mean over tasks and base models", columns, rows)


def _full_trials(study: StudyData, family: str) -> list[TrialRow]:
    """Search trials of a family that ran the whole budget."""
    # Rungs are left out: the forecast is that of a full trial.
    full = ("search", family, "complete", 1)
    return [trial for trial in study.ran if (trial.role, trial.family, trial.status, trial.fidelity) == full]


def _compared(forecast: float, taken: float | None) -> tuple[str | None, str | None, str | None]:
    # A forecast of zero seconds is one of nothing to run, and a ratio to it says nothing.
    ratio = None if taken is None or not forecast else f"{taken / forecast:.2f}"
    return words.seconds(forecast), words.seconds(taken), ratio
