"""What went wrong: every status and reason, how often, and what it cost."""

from __future__ import annotations

from typing import ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.markup import Column, Html, paragraph, table
from harness.report.sections.base import Section

SHOWN = 50
"""Different reasons listed at most, the most frequent first."""


class Failures(Section):
    """Failures by family, status and reason, with their cost."""

    summary = "Failures with reason and cost."
    title: ClassVar[str] = "What failed, and why"
    order: ClassVar[int] = 80
    nothing: ClassVar[str] = "No trial has run yet, so none has failed."

    def render(self, study: StudyData) -> Html | None:
        """A sentence and a table."""
        if study.ran.empty:
            return None
        failed, waiting = study.failed, int(study.trials["status"].isna().sum())
        pending = (
            f" {words.count(waiting, 'trial')} more {'has' if waiting == 1 else 'have'} no record yet."
            if waiting
            else ""
        )
        pruned = int((study.ran["status"] == "pruned").sum())
        stopped = (
            f" {words.count(pruned, 'trial')} stopped early by the scheduler, which is no failure." if pruned else ""
        )
        if failed.empty:
            total = words.count(len(study.ran), "trial")
            return paragraph(f"No trial failed: all {total} ended with scores.{stopped}{pending}")
        lost = words.seconds(float(failed["total_s"].sum()))
        text = f"{len(failed):,} of {words.count(len(study.ran), 'trial')} ended without a score and took {lost}."
        return paragraph(text + stopped + pending) + _table(study)


def _table(study: StudyData) -> Html:
    rows = []
    groups = study.failed.groupby(["status", "reason", "family"], sort=True)
    ordered = sorted(groups, key=lambda item: (-len(item[1]), item[0]))
    for (status, reason, family), trials in ordered[:SHOWN]:
        rows.append(
            (
                str(family),
                str(status).replace("_", " "),
                str(reason) or None,
                f"{len(trials):,}",
                words.listed(sorted(set(trials["role"]))),
                words.seconds(float(trials["total_s"].sum())),
            )
        )
    columns = [Column("Family"), Column("How it ended"), Column("Reason"), Column("Trials", number=True)]
    columns += [Column("While in"), Column("Time lost", number=True)]
    caption = "Failures by family and reason, the most frequent first"
    return table(caption + (f" ({SHOWN} of {len(ordered):,})" if len(ordered) > SHOWN else ""), columns, rows)
