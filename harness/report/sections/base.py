"""The author's contract for a section of the report: a title, a place, and what it shows of a study.

One file per section. Everything that goes into the page is built with `report.markup`, which escapes what users wrote.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from harness.axes.contract import Plugin
from harness.report.data import StudyData
from harness.report.markup import Html


class Section(Plugin, ABC):
    """One part of the report."""

    title: ClassVar[str]
    """Its heading, a sentence's start: `How the methods compare`."""
    order: ClassVar[int]
    """Sections stand in rising order; the answer is 0."""
    nothing: ClassVar[str]
    """What is said instead when there is nothing to show: why, and how to get it."""

    @abstractmethod
    def render(self, study: StudyData) -> Html | None:
        """The section's content without its heading, headings inside from level 3; None when there is nothing to show."""
