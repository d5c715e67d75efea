"""What went wrong: every status and reason, how often, and what it cost."""

from __future__ import annotations

from typing import ClassVar

from harness.database.rows import grouped
from harness.report import words
from harness.report.data import StudyData
from harness.report.markup import Column, Html, join, paragraph, table
from harness.report.rows import total
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
        left_out = join(
            paragraph(f"Left out before anything ran: {reason}", kind="warning")
            for reason in study.file.refused.values()
        )
        return left_out + _trials(study) if study.ran else left_out or None


def _trials(study: StudyData) -> Html:
    """What became of those that ran."""
    waiting = sum(trial.status is None for trial in study.trials)
    pending = (
        f" {words.count(waiting, 'trial')} more {'has' if waiting == 1 else 'have'} no record yet." if waiting else ""
    )
    pruned = sum(trial.status == "pruned" for trial in study.ran)
    stopped = f" {words.count(pruned, 'trial')} stopped early by the scheduler, which is no failure." if pruned else ""
    if not study.failed:
        ran = words.count(len(study.ran), "trial")
        return paragraph(f"No trial failed: all {ran} ended with scores.{stopped}{pending}")
    lost = words.seconds(total(trial.total_s for trial in study.failed))
    text = f"{len(study.failed):,} of {words.count(len(study.ran), 'trial')} ended without a score and took {lost}."
    return paragraph(text + stopped + pending) + _table(study)


def _table(study: StudyData) -> Html:
    rows = []
    groups = grouped(study.failed, lambda trial: (trial.status or "", trial.reason or "", trial.family))
    # Ties go by name, so that the same study gives the same page.
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    for (status, reason, family), trials in ordered[:SHOWN]:
        rows.append(
            (
                family,
                status.replace("_", " "),
                reason or None,
                f"{len(trials):,}",
                words.listed(sorted({trial.role for trial in trials})),
                words.seconds(total(trial.total_s for trial in trials)),
            )
        )
    columns = [Column("Family"), Column("How it ended"), Column("Reason"), Column("Trials", number=True)]
    columns += [Column("Phase"), Column("Time lost", number=True)]
    caption = "Failures by family and reason, the most frequent first"
    return table(caption + (f" ({SHOWN} of {len(ordered):,})" if len(ordered) > SHOWN else ""), columns, rows)
