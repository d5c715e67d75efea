"""A study's report: the sections in their order, as one HTML file that needs nothing else."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from harness.files import write_atomically
from harness.plugins import load_all
from harness.records.paths import Paths
from harness.report.conclusion import said
from harness.report.data import StudyData, load_study_data
from harness.report.markup import Html, join, listing, paragraph, slug, tag

FOLDER = "report/sections"
LIMIT_BYTES = 1_500_000
"""A report is at most this large, so that it can be mailed and opened on a phone."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser itself refuses scripts and loads, whatever a future section might put into the page."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """A rendered section."""

    title: str
    content: Html

    @property
    def anchor(self) -> str:
        """The section's id within the page."""
        return slug("section", self.title)


def write_report(paths: Paths, study: str) -> Path:
    """Write a study's report and return its path; what the page says first is logged, for the terminal's last lines.

    Args:
        paths: Of the results and reports folders.
        study: Its name.

    Raises:
        SpecError: When there is no study of that name; the message lists those there are.
        StorageError: When the database is missing or the disk refuses.
    """
    path = paths.report(study)
    data = load_study_data(paths, study)
    write_atomically(path, render_report(data))
    for one in said(data):
        log.info("%s", one.text)
    return path


def render_report(study: StudyData) -> str:
    """The whole page; the same study gives the same bytes."""
    # A project's own section may have the order of another; its title then decides, so that pages do not vary.
    sections = sorted(load_all(FOLDER).values(), key=lambda section: (section.order, section.title))
    parts = []
    for section in sections:
        content = section().render(study)
        parts.append(Part(section.title, paragraph(section.nothing, kind="absent") if content is None else content))
    return _page(study, _within_limit(parts))


def _within_limit(parts: list[Part]) -> list[Part]:
    """Leave out the largest sections, saying so, until the page is within its limit; never the answer."""
    shown = list(parts)
    # The style sheet and the frame of the page take less than 50 kB.
    while len(shown) > 1 and sum(len(part.content.encode()) for part in shown) > LIMIT_BYTES - 50_000:
        largest = max(range(1, len(shown)), key=lambda index: len(shown[index].content))
        size = len(shown[largest].content) / 1e6
        reason = (
            f"Left out: this section would take {size:.1f} MB of a report's {LIMIT_BYTES / 1e6:.1f} MB. "
            "Its data is in the database: run harness export."
        )
        log.warning("section %r left out of the report: %.1f MB", shown[largest].title, size)
        shown[largest] = Part(shown[largest].title, paragraph(reason, kind="absent"))
    return shown


def _page(study: StudyData, parts: list[Part]) -> str:
    question = study.file.question
    title = f"{study.name}: {'study report' if question is None else question}"
    header = tag(
        "header", paragraph(f"Fine-tuning study · {study.name}", kind="kicker"), tag("h1", question or study.name)
    )
    answer, *others = parts
    contents = tag("nav", listing(tag("a", p.title, href=f"#{p.anchor}") for p in others), aria_label="Sections")
    main = tag("main", _part(answer), contents, join(_part(part) for part in others))
    skip = tag("a", "Skip to the answer", href=f"#{answer.anchor}", class_="skip")
    return document(title, tag("body", skip, header, main, _footer()))


def document(title: str, body: Html) -> str:
    """A page that needs nothing else, and may load nothing.

    Args:
        title: Of the browser's window.
        body: The element.
    """
    style = files("harness.report").joinpath("style.css").read_text(encoding="utf-8")
    head = join(
        (
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("title", title),
            tag("style", Html(style)),
        )
    )
    return f'<!DOCTYPE html>\n<html lang="en">{tag("head", head)}{body}</html>\n'


def _part(part: Part) -> Html:
    return tag("section", tag("h2", part.title), part.content, id=part.anchor)


def _footer() -> Html:
    return tag(
        "footer",
        paragraph(
            "Confirmed results come from fresh seeds, scored once on the test split; the search saw the validation split "
            "only. Intervals are 95% and allow for other seeds and other test items. Forgetting is the base model's score minus "
            "the tuned model's on a skill that was not trained for: positive is lost. Absent means that it was not measured."
        ),
    )
