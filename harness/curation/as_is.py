"""The task's training rows, unchanged."""

from __future__ import annotations

from harness.curation.base import Curation


class AsIs(Curation):
    """Every row, in the task's order."""

    summary = "the task's training rows, unchanged"
