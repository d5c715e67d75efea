"""What a task file's templates give for a row, as the value that it is: a text stays a text, whatever it looks like.

lm-eval renders every template to a text and then guesses: `["red", "blue"]` becomes a list and "007" an error. Here a
template of one expression has that expression's value, and any other template a text. Templates run in jinja's sandbox and
are compiled once.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from harness.tasks.splits import Doc

if TYPE_CHECKING:
    from jinja2.environment import TemplateExpression
    from jinja2.sandbox import SandboxedEnvironment

_ASIDE = re.compile("\ue000([0-9]+)\ue001")
"""Stands for a text while the template around it is read as a list; private characters, which no Python syntax has."""


@cache
def sandbox() -> SandboxedEnvironment:
    """lm-eval's environment of templates in jinja's sandbox."""
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    class Sandbox(SandboxedEnvironment):
        # lm-eval compiles a template for every row.
        from_string = lru_cache(maxsize=256)(SandboxedEnvironment.from_string)  # type: ignore[assignment]

    plain = lm_eval.utils.env
    made = Sandbox(undefined=plain.undefined, keep_trailing_newline=True)
    made.filters.update(plain.filters)
    return made


def value_of(entry: object, doc: Doc) -> Any:
    """What an entry of a task file gives for a row: a column's cell, a template's value, or what a function returns.

    Args:
        entry: Of `doc_to_target`, say.
        doc: The row.
    """
    if not isinstance(entry, str):
        return entry(doc) if callable(entry) else entry
    if entry in doc:
        return doc[entry]
    if (column := _column(entry)) is not None and column in doc:
        return doc[column]
    if (expression := _expression(entry)) is None:
        return _printer().from_string(entry).render(**doc)
    value = expression(**doc)
    if isinstance(value, sandbox().undefined):
        str(value)  # raises, and names what is missing
    return value


def shown(entry: object, doc: Doc) -> Any:
    """What an entry prints for a row, in the notation that jinja prints it; what is no text comes from a function.

    Args:
        entry: Of `doc_to_text`, say.
        doc: The row.
    """
    if not isinstance(entry, str):
        return entry(doc) if callable(entry) else entry
    return str(doc[entry]) if entry in doc else sandbox().from_string(entry).render(**doc)


def answer_text(value: object) -> str:
    """An answer as it is trained and scored.

    Raises:
        TypeError: For a value that is no text, and would come out as Python's own notation.
    """
    if value is None or isinstance(value, Mapping | list | tuple):
        raise TypeError(f"{str(value)[:60]} is no text: write it into the data as one, or use a filter such as join")
    return str(value)


def is_cell(entry: object, columns: Container[str]) -> bool:
    """Whether an entry shows what stands in a row as it stands there: it names a column, or prints one.

    Args:
        entry: Of `doc_to_target`, say.
        columns: Names of the data's columns.
    """
    from jinja2 import TemplateSyntaxError, nodes

    if not isinstance(entry, str) or entry in columns:
        return isinstance(entry, str)
    try:
        body = sandbox().parse(entry).body
    except TemplateSyntaxError:
        return False
    shown = [node for output in body for node in getattr(output, "nodes", [None])]
    node = shown[0] if len(shown) == 1 else None
    while isinstance(node, nodes.Getattr | nodes.Getitem):
        node = node.node
    return isinstance(node, nodes.Name)


def list_of(entry: object, doc: Doc) -> list[Any] | None:
    """The list that an entry gives for a row; None where it gives none.

    Args:
        entry: Of `doc_to_choice`: a list, a mapping to choices, a column, or a template that shows a list.
        doc: The row.
    """
    if isinstance(entry, str) and entry not in doc and _expression(entry) is None:
        value: object = _list_with_texts(entry, doc)
    else:
        value = value_of(entry, doc)
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else None


def _list_with_texts(template: str, doc: Doc) -> object:
    """The list that a template spells; a row's texts stay as they are, quotes and backslashes included."""
    environment, texts = _setting_aside()
    texts.clear()
    spelt = _parsed(environment.from_string(template).render(**doc))
    if not isinstance(spelt, list | tuple):
        return spelt
    return [_ASIDE.sub(lambda match: texts[int(match[1])], item) if isinstance(item, str) else item for item in spelt]


@cache
def _setting_aside() -> tuple[SandboxedEnvironment, list[str]]:
    """Renders a number in the place of each text, and the texts of the last template rendered."""
    from jinja2 import pass_context

    texts: list[str] = []

    # With a context, so that jinja does not call it for constants while it compiles.
    @pass_context
    def aside(_: object, value: object) -> object:
        if not isinstance(value, str):
            return value
        texts.append(value)
        return f"\ue000{len(texts) - 1}\ue001"

    return sandbox().overlay(finalize=aside), texts


def _parsed(text: str) -> object:
    """The value that a text spells in JSON or Python; None where it spells none."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


@lru_cache(maxsize=256)
def _expression(template: str) -> TemplateExpression | None:
    """A template that is one expression, compiled; None where it is more than that."""
    from jinja2 import TemplateSyntaxError

    match = re.fullmatch(r"\{\{-?(.*?)-?\}\}", template, re.DOTALL)
    try:
        return sandbox().compile_expression(match[1], undefined_to_none=False) if match else None
    except TemplateSyntaxError:
        return None


@lru_cache(maxsize=256)
def _column(template: str) -> str | None:
    """The column whose cell a template's value is; None where jinja has to find it."""
    match = re.fullmatch(r"\{\{-?\s*([A-Za-z_][A-Za-z0-9_]*)\s*-?\}\}", template)
    return match[1] if match and is_cell(template, ()) else None


@cache
def _printer() -> SandboxedEnvironment:
    """Renders texts, and refuses to print what would come out as Python's own notation."""

    def printable(value: object) -> object:
        return value if isinstance(value, str) else answer_text(value)

    return sandbox().overlay(finalize=printable)
