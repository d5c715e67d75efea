"""HTML that cannot be injected into: every string is escaped unless this module made it.

`tag` builds an element; its children are escaped text, or `Html` that came from `tag` itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

ABSENT = "absent"
"""What stands where there is no data; 0 is a value."""

_VOID = frozenset({"meta", "br", "hr"})


class Html(str):
    """Markup that is safe to put into a page as it is."""

    __slots__ = ()

    def __add__(self, other: str) -> Html:
        """Markup followed by more of it; a plain string is escaped."""
        return join((self, other))


def join(parts: Iterable[str]) -> Html:
    """Concatenate children; plain strings are escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def tag(name: str, /, *children: str, **attributes: str) -> Html:
    """One element.

    Args:
        name: Element name.
        *children: Escaped unless they are `Html`.
        **attributes: Values are escaped; a trailing underscore is dropped (`class_`), others become dashes.
    """
    # Python does not take `class` or `aria-label` as names of arguments.
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items() if value
    )
    return Html(f"<{name}{written}>" + ("" if name in _VOID else f"{join(children)}</{name}>"))


def slug(*parts: str) -> str:
    """An id for HTML and SVG: letters, digits and dashes; two different inputs differ by a hash where letters were lost."""
    text = "-".join(parts)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "x"
    if plain == text:
        return plain
    # Two titles that differ only in other characters would otherwise share an anchor.
    from harness.records.codec import fingerprint

    return f"{plain}-{fingerprint(list(parts))[:5]}"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    number: bool = False
    """Numbers are right-aligned with figures of equal width."""


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[str | None]]) -> Html:
    """A data table in a box that scrolls.

    Args:
        caption: What it shows; a screen reader announces it.
        columns: Titles and alignments.
        rows: One text per column, escaped here; None reads "absent". The first heads its row.
    """
    kinds = ["number" if column.number else "" for column in columns]
    head = join(tag("th", column.title, scope="col", class_=kind) for column, kind in zip(columns, kinds, strict=True))
    body = join(_row(row, kinds) for row in rows)
    content = (tag("caption", caption), tag("thead", tag("tr", head)), tag("tbody", body))
    return scrolling(tag("table", *content), caption)


def _row(row: Sequence[str | None], kinds: Sequence[str]) -> Html:
    cells = []
    for index, (value, kind) in enumerate(zip(row, kinds, strict=True)):
        classes = kind if value is not None else f"{kind} absent".strip()
        shown = ABSENT if value is None else value
        cells.append(tag("th", shown, scope="row", class_=classes) if index == 0 else tag("td", shown, class_=classes))
    return tag("tr", join(cells))


def scrolling(content: Html, label: str) -> Html:
    """A box that scrolls sideways where its content is wider than the page.

    Args:
        content: A table or a figure.
        label: Its name for screen readers.
    """
    # A box that scrolls must take the focus, or the keyboard cannot scroll it (WCAG 2.1.1).
    return tag("div", content, class_="scroll", tabindex="0", role="region", aria_label=label)


def details(summary: str, *content: str) -> Html:
    """Content that opens on demand, without a script."""
    return tag("details", tag("summary", summary), *content)


def paragraph(*children: str, kind: str = "") -> Html:
    """A paragraph, with a CSS class if given (`lead`, `note`, `absent`, `warning`)."""
    return tag("p", *children, class_=kind)


def listing(items: Iterable[str]) -> Html:
    """A bulleted list."""
    return tag("ul", join(tag("li", item) for item in items))


def facts(pairs: Iterable[tuple[str, str | None, str]]) -> Html:
    """A grid of label, large value and remark; a value of None reads "absent"."""
    return tag(
        "dl",
        join(
            tag(
                "div",
                tag("dt", label),
                tag("dd", ABSENT if value is None else value, class_="value" if value is not None else "value absent"),
                tag("dd", remark, class_="remark") if remark else Html(""),
            )
            for label, value, remark in pairs
        ),
        class_="facts",
    )
