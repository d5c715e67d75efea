"""What a row's label means: a choice that it names, or the place of one.

lm-eval takes any text of digits for a place, so that of the choices ["1", "0"] the label "0" would be "1". Here a label that
stands among the choices is that choice, and only otherwise may a whole number be a place, counted from 0. All rows of a task
are read the same way, since a column holds either the one or the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from harness.errors import SpecError
from harness.tasks.splits import Doc
from harness.tasks.templates import is_cell, list_of, shown, value_of

_TRUTH = ("true", "false")
Place = tuple[str, Doc]
"""A row, and where it stands, for error messages."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """How the rows of a task say which choice is right."""

    are_places: bool = False
    """Whether a label that could be a choice as well as the place of one is the place."""
    choose_prompt: bool = False
    """Whether the choices stand in the prompt's place, and `doc_to_text` says which of them is right."""
    notes: tuple[str, ...] = ()
    """What a reader must know of this."""


@dataclass(frozen=True)
class _Label:
    """What a row says of one right answer."""

    said: object
    choices: Sequence[str]
    where: str

    @property
    def named(self) -> int | None:
        """The choice that it names."""
        return self.read[0]

    @property
    def place(self) -> int | None:
        """The choice whose place it is."""
        return self.read[1]

    @cached_property
    def read(self) -> tuple[int | None, int | None]:
        """Both."""
        if isinstance(self.said, str):  # most tasks have few labels, in many rows
            return _read_text(self.said, tuple(self.choices))
        return _read(self.said, self.choices)

    @property
    def refusal(self) -> str:
        """Why it cannot be right."""
        because = ", a truth value, which is neither a choice nor an index" if isinstance(self.said, bool) else ""
        return (
            f"{self.where}: the label must be one of {list(self.choices)} or its index, but is {self.said!r}{because}: "
            "correct the data"
        )


def _read(said: object, choices: Sequence[str]) -> tuple[int | None, int | None]:
    """The choice that a label names, and the one whose place it is."""
    place = whole_number(said)
    return named_choice(said, choices), place if place is not None and place < len(choices) else None


@lru_cache(maxsize=4096)
def _read_text(said: str, choices: tuple[str, ...]) -> tuple[int | None, int | None]:
    return _read(said, choices)


def read_labels(config: Mapping[str, Any], rows: Sequence[Place]) -> Labels:
    """How a task's labels are to be read, decided on all of its rows.

    Args:
        config: lm-eval's configuration of the task, with choices.
        rows: Of all splits.

    Raises:
        SpecError: For the first row whose label is neither a choice nor a place, or where a computed one may be either.
    """
    entry = config.get("doc_to_target")
    labels = [
        _Label(said, choices, where)
        for where, doc in rows
        for choices in [choices_of(config, doc, where)]
        for said in several(value_of(entry, doc))
    ]
    if config["output_type"] == "multiple_choice" and _choose_prompt(config, rows, labels):
        return Labels(choose_prompt=True)
    for label in labels:
        if label.named is None and label.place is None:
            raise SpecError(label.refusal)
    if not isinstance(entry, str):
        return Labels(are_places=True)  # a file or a function says a whole number only where it means a place
    differs = next((one for one in labels if None not in (one.named, one.place) and one.named != one.place), None)
    if differs is None:
        return Labels()  # no label can be read in two ways
    all_named, all_placed = (all(getattr(label, kind) is not None for label in labels) for kind in ("named", "place"))
    if not all_named and not all_placed:
        raise SpecError(next(label.refusal for label in labels if label.named is None))
    if not all_placed:
        return Labels()
    if all_named and not is_cell(entry, rows[0][1]):
        raise SpecError(
            f"{differs.where}: the label must say one thing, but {differs.said!r} may be a choice or the place of one among "
            f"{list(differs.choices)}: let doc_to_target show the choice itself"
        )
    meant = differs.choices[int((differs.named if all_named else differs.place) or 0)]
    kind = "names of choices, not their places" if all_named else "places of choices, counted from 0, not their names"
    return Labels(are_places=not all_named, notes=(f"labels are {kind}: {differs.said!r} means {meant!r}",))


def gold_of(config: Mapping[str, Any], labels: Labels, doc: Doc, where: str = "") -> int | list[int]:
    """Which of a row's choices is right; several where the row names several.

    Args:
        config: lm-eval's configuration of the task, with choices.
        labels: How its labels are read.
        doc: The row.
        where: Its place, for error messages.

    Raises:
        SpecError: When a label is not among the choices.
    """
    entry = config.get("doc_to_target")
    said, choices = value_of(entry, doc), choices_of(config, doc, where)
    golds = []
    for one in several(said):
        label = _Label(one, choices, where)
        named, place = label.read
        names = isinstance(one, str) and not isinstance(entry, str)  # a text that a function returns
        read = (place, named) if labels.are_places and not names else (named, place)
        gold = next((place for place in read if place is not None), None)
        if gold is None:
            raise SpecError(label.refusal)
        golds.append(gold)
    return golds if isinstance(said, list | tuple) else golds[0]


_SHOWS = r"\s*\{\{\s*((\w+).*?)\s*\}\}\s*"
"""A template that shows an expression which begins with a column."""


def choices_of(config: Mapping[str, Any], doc: Doc, where: str = "") -> list[str]:
    """A row's choices as texts.

    Args:
        config: lm-eval's configuration of the task.
        doc: The row.
        where: Its place, for error messages.

    Raises:
        SpecError: When they are no list, or one of them is no text.
    """
    entry = config.get("doc_to_choice")
    if isinstance(entry, list) and set(map(type, entry)) == {str} and _are_texts(tuple(entry), tuple(doc)):
        return list(entry)
    choices = list_of(entry, doc)
    if not choices:
        raise SpecError(f"{where}: doc_to_choice must give a list of choices, but gives {choices!r}: correct it")
    for choice in choices:
        # YAML reads an unquoted yes as a truth value; as a text it would be "True".
        if isinstance(choice, bool) or not isinstance(choice, str | int | float):
            raise SpecError(f"{where}: a choice must be a text, but is {choice!r}: put it into quotes")
    # lm-eval renders a template that shows a list, and takes the texts of a list as they stand.
    if not isinstance(entry, str) and not _are_texts(tuple(map(str, choices)), tuple(doc)):
        templates = [re.fullmatch(_SHOWS, str(choice)) for choice in choices]
        shows = ", ".join(match[1] if match else repr(choice) for match, choice in zip(templates, choices, strict=True))
        raise SpecError(
            f"{where}: the choices of a list must be texts, but {choices!r} are templates: write one that shows the list, "
            f'"{{{{[{shows}]}}}}"'
        )
    return [str(choice) for choice in choices]


@lru_cache(maxsize=1024)
def _are_texts(choices: tuple[str, ...], columns: tuple[str, ...]) -> bool:
    """Whether these are choices, and none of them is a template that shows a column."""
    matches = [re.fullmatch(_SHOWS, choice) for choice in choices]
    return bool(choices) and not any(match and match[2] in columns for match in matches)


def was_read_otherwise(config: Mapping[str, Any], rows: Callable[[], Sequence[Doc]]) -> bool:
    """Whether the harness once trained or scored such a task otherwise, so that old records do not speak of it.

    It read texts as lm-eval guesses them (digits as places, brackets as lists), and scored the delimiter with the answer.

    Args:
        config: lm-eval's configuration of a task that a user wrote.
        rows: Gives the rows of all splits.
    """
    entry, choices = config.get("doc_to_target"), config.get("doc_to_choice")
    if is_delimited(config) or (config["output_type"] == "generate_until" and config.get("gen_prefix")):
        return True
    if config["output_type"] == "generate_until" and isinstance(entry, str) and entry != entry.lstrip():
        return True
    if choices is None:
        template = isinstance(entry, str) and entry.startswith(("{", "["))
        return template and any(re.fullmatch(r"\[.*\]", str(shown(entry, doc)), re.DOTALL) for doc in rows())
    fixed = list(choices.values()) if isinstance(choices, Mapping) else choices
    if isinstance(fixed, list) and not any(
        whole_number(one) is not None or named_choice(one, _TRUTH) is not None for one in fixed
    ):
        return False
    labels = [_Label(said, choices_of(config, doc), "") for doc in rows() for said in several(value_of(entry, doc))]
    return any(isinstance(one.said, bool) or (one.named is not None and one.named != one.place) for one in labels)


def is_delimited(config: Mapping[str, Any]) -> bool:
    """Whether something stands between a task's prompts and the answers that are generated after them."""
    return config["output_type"] == "generate_until" and bool(config.get("target_delimiter", " "))


def named_choice(label: object, choices: Sequence[str]) -> int | None:
    """The place of the choice that a label names by its meaning: 5 is "5", and a truth value is "true", however written."""
    text = str(label)
    if isinstance(label, float) and label.is_integer() and text not in choices:
        text = str(int(label))
    if text in choices and not isinstance(label, bool):
        return choices.index(text)
    if text.casefold() not in _TRUTH:
        return None
    same = [place for place, choice in enumerate(choices) if choice.casefold() == text.casefold()]
    return same[0] if len(same) == 1 else None


def whole_number(label: object) -> int | None:
    """The number that a label is, or that its digits spell; None for anything else, truth values included."""
    if isinstance(label, str):
        return int(label) if re.fullmatch("0|[1-9][0-9]{0,8}", label) else None
    if isinstance(label, bool) or not isinstance(label, int | float) or label < 0 or label != label // 1:
        return None
    return int(label)


def several(value: object) -> Sequence[object]:
    """The right answers that a row gives, one or several."""
    return value if isinstance(value, list | tuple) else (value,)


def _choose_prompt(config: Mapping[str, Any], rows: Sequence[Place], labels: Sequence[_Label]) -> bool:
    """Whether `doc_to_text` says which choice is right, as in Winogrande; then the target is what follows every choice.

    A prompt may be a number as well: what decides is whether the targets are labels.
    """
    if not any(label.named is None and label.place is None for label in labels):
        return False
    prompts = (_Label(shown(config.get("doc_to_text"), doc), choices_of(config, doc), where) for where, doc in rows)
    return all(prompt.place is not None for prompt in prompts)
