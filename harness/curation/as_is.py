"""The task's training rows, unchanged."""

from __future__ import annotations

from harness.curation.base import Curation
from harness.plugins import Row, StageSetup


class AsIs(Curation):
    """Every row, in the task's order."""

    summary = "the task's training rows, unchanged"

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The rows themselves."""
        return rows
