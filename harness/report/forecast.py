"""What `plan` predicted, beside what happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.report import words
from harness.report.data import StudyData
from harness.report.markup import Column, Html, paragraph, table, tag

if TYPE_CHECKING:
    from pandas import DataFrame


def forecast_table(study: StudyData) -> Html:
    """Forecast and actual by step and by family, from the study's `plan.json`."""
    heading = tag("h3", "Forecast and actual")
    if study.plan is None:
        text = "No forecast was kept for this study: harness search keeps one as plan.json when it starts."
        return heading + paragraph(text, kind="absent")
    return heading + _steps(study, study.plan.get("steps", ())) + _families(study, study.plan.get("families", {}))


def _steps(study: StudyData, steps: list[Mapping[str, Any]]) -> Html:
    columns = [Column("Step"), Column("Trials forecast", number=True), Column("Trials run", number=True)]
    columns += [Column("Time forecast", number=True), Column("Time taken", number=True), Column("Ratio", number=True)]
    rows = []
    for step in steps:
        trials = study.ran[study.ran["role"] == step["step"]]
        taken = float(trials["total_s"].sum()) if len(trials) else None
        rows.append(
            (str(step["step"]), words.number(step["trials"]), f"{len(trials):,}", *_compared(step["seconds"], taken))
        )
    return table("Trials and trial time by step; reused trials count with what they once took", columns, rows)


def _families(study: StudyData, families: Mapping[str, Mapping[str, Any]]) -> Html:
    columns = [Column("Family"), Column("Time forecast", number=True), Column("Time taken", number=True)]
    columns += [
        Column("Ratio", number=True),
        Column("Memory forecast", number=True),
        Column("Memory taken", number=True),
    ]
    columns += [Column("Forecast from")]
    rows = []
    for name, forecast in families.items():
        trials = _full_trials(study, name)
        taken = float(trials["total_s"].mean()) if len(trials) else None
        memory = float(trials["peak_memory_bytes"].max()) if len(trials) else None
        sizes = (words.size(forecast.get("peak_memory_bytes")), words.size(memory))
        rows.append((name, *_compared(forecast["seconds"], taken), *sizes, str(forecast.get("basis", "")) or None))
    return table("One full search trial of each family, mean over tasks and base models", columns, rows)


def _full_trials(study: StudyData, family: str) -> DataFrame:
    """Search trials that ran the whole budget."""
    ran = study.ran
    return ran[
        (ran["role"] == "search") & (ran["family"] == family) & (ran["status"] == "complete") & (ran["fidelity"] == 1)
    ]


def _compared(forecast: float, taken: float | None) -> tuple[str | None, str | None, str | None]:
    ratio = None if taken is None or not forecast else f"{taken / forecast:.2f}"
    return words.seconds(forecast), words.seconds(taken), ratio
