from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from harness.report.markup import Column, Html, join, slug, table, tag


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags, self.attributes = "", [], {}

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes = dict(attrs)


# what an HTML parser itself normalises (carriage returns, NUL) is left out
TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]))


@given(TEXT, TEXT.filter(bool))
def test_any_text_comes_back_as_text(text: str, attribute: str) -> None:
    reader = Reader()
    reader.feed(tag("p", text, title=attribute))
    reader.close()
    assert (reader.text, reader.tags, reader.attributes) == (text, ["p"], {"title": attribute})


@given(TEXT, TEXT)
def test_adding_plain_text_to_markup_escapes_it(first: str, second: str) -> None:
    reader = Reader()
    reader.feed(tag("b", first) + second)
    reader.close()
    assert (reader.text, reader.tags) == (first + second, ["b"])


def test_markup_is_not_escaped_twice() -> None:
    assert join((tag("b", "a & b"), " < ")) == "<b>a &amp; b</b> &lt; "
    assert isinstance(Html("a") + "b", Html)


def test_a_missing_cell_reads_absent_and_a_zero_reads_zero() -> None:
    made = table("Caption", [Column("Name"), Column("Value", number=True)], [("a", None), ("b", "0")])
    assert '<th scope="row">a</th><td class="number absent">absent</td>' in made
    assert '<th scope="row">b</th><td class="number">0</td>' in made
    assert "<caption>Caption</caption>" in made


@given(TEXT, TEXT)
def test_slugs_are_ids_and_tell_texts_apart(first: str, second: str) -> None:
    assert slug(first).replace("-", "").isalnum()
    if first != second:
        assert slug(first) != slug(second)
