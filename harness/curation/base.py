"""The author's contract for curation: what happens to the training rows before they are trained on.

One file per choice; its stem is its name in study files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from harness.plugins import Plugin, Row, StageSetup


class Curation(Plugin, ABC):
    """Decides what the training rows look like."""

    @abstractmethod
    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The rows to train on; must not change those it was given."""
