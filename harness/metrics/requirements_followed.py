"""Share of decomposed requirements that generated texts follow, each checked by a rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.errors import SpecError, one_of
from harness.metrics.base import SHARE, Answered, Measure, Settings


def _is_json(text: str, wanted: object) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return not wanted
    return bool(wanted)


RULES: Mapping[str, Callable[[str, Any], bool]] = {
    "contains": lambda text, wanted: str(wanted) in text,
    "excludes": lambda text, wanted: str(wanted) not in text,
    "matches": lambda text, wanted: re.search(str(wanted), text) is not None,
    "starts_with": lambda text, wanted: text.strip().startswith(str(wanted)),
    "ends_with": lambda text, wanted: text.strip().endswith(str(wanted)),
    "min_words": lambda text, wanted: len(text.split()) >= wanted,
    "max_words": lambda text, wanted: len(text.split()) <= wanted,
    "min_chars": lambda text, wanted: len(text.strip()) >= wanted,
    "max_chars": lambda text, wanted: len(text.strip()) <= wanted,
    "lines": lambda text, wanted: sum(bool(line.strip()) for line in text.splitlines()) == wanted,
    "lower": lambda text, wanted: (text == text.lower()) == bool(wanted),
    "upper": lambda text, wanted: (text == text.upper()) == bool(wanted),
    "json": _is_json,
}
"""What a rule may ask of a text; the words of a text are what white space separates."""


class RequirementsFollowed(Measure):
    """Followed requirements over all requirements of all items (the paper's DRFR, with rules in place of judges).

    `rules` in the metric's entry hold for every item; `column` names a column with the item's own: a list of mappings
    such as `[{contains: tea}, {max_words: 20}]`, or the same as JSON text.
    """

    summary = "share of the rules that generated texts follow"
    paper = "Qin et al. 2024 (InfoBench), arXiv 2401.03601"
    output_types = ("generate_until",)
    scale = SHARE
    settings = {"rules": (), "column": ""}

    def check(self, settings: Settings, where: str) -> None:
        """Ask for rules, all of them known.

        Args:
            settings: Of the entry, with defaults filled in.
            where: Task file and metric, for the error message.

        Raises:
            SpecError: When they are not what was asked for.
        """
        super().check(settings, where)
        if not settings["rules"] and not settings["column"]:
            raise SpecError(f"{where} must have rules, but names none: give rules or column")
        _rules(settings["rules"], where)

    def item(self, answered: Answered) -> tuple[int, int]:
        """Followed, and all."""
        column, where = str(answered.settings["column"]), "requirements_followed"
        if column and column not in answered.doc:
            raise SpecError(f"{where}: " + one_of("column", column, [str(name) for name in answered.doc]))
        own = answered.doc[column] if column else ()
        # A CSV file holds nothing but text.
        own = json.loads(own) if isinstance(own, str) else own
        rules = [*_rules(answered.settings["rules"], where), *_rules(own or (), f"{where}: column {column}")]
        text = str(answered.answers[0])
        return sum(RULES[name](text, wanted) for name, wanted in rules), len(rules)

    def total(self, items: Sequence[tuple[int, int]]) -> float:
        """In [0, 1]; not a number where no item has a rule."""
        count = sum(rules for _, rules in items)
        return sum(followed for followed, _ in items) / count if count else float("nan")

    def value(self, item: tuple[int, int]) -> float:
        """The item's own share."""
        return item[0] / item[1] if item[1] else float("nan")


def _rules(given: object, where: str) -> list[tuple[str, Any]]:
    """Pairs of a rule's name and what it wants; a table's empty cells are no rules.

    Raises:
        SpecError: For what is no list of mappings, an unknown rule, or a value of the wrong kind.
    """
    if not isinstance(given, list | tuple) or not all(isinstance(rule, Mapping) for rule in given):
        raise SpecError(f"{where} must list rules such as {{contains: tea}}, but got {given!r}: correct it")
    rules = [(str(name), wanted) for rule in given for name, wanted in rule.items() if wanted is not None]
    for name, wanted in rules:
        if name not in RULES:
            raise SpecError(f"{where}: " + one_of("rule", name, list(RULES)))
        if name in ("lines",) or name[:4] in ("min_", "max_"):
            if isinstance(wanted, bool) or not isinstance(wanted, int | float):
                raise SpecError(f"{where}: {name} must be a number, but is {wanted!r}: correct it")
        elif name == "matches":
            try:
                re.compile(str(wanted))
            except re.error as error:
                raise SpecError(f"{where}: matches must be a regular expression ({error}): correct it") from error
    return rules
