"""Dataclasses as JSON and back, driven by their fields and the fields' annotations.

A `Record` keeps the fields of its JSON that it does not declare: another version of harness wrote them, and whoever
writes the record again must not lose them. A field that is `added` to a record after its first version stays out of the
JSON while it is at its default, so that records and keys from before it remain what they were.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path, PurePath
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from harness.errors import StorageError
from harness.files import read_lines

Json = Any
"""A value as `json.loads` gives it."""
Annotation = Any
"""A dataclass, or what a field is annotated with: no type of `typing` covers both."""
LARGEST_INTEGER = 2**63 - 1
"""The largest whole number that a record may hold: DuckDB's BIGINT holds no larger one."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the dataclasses that are read from JSON."""

    # a mapping has no hash, and frozen records are keys of caches
    unknown: Mapping[str, Json] = field(default_factory=dict, repr=False, hash=False)
    """What the JSON has beside the fields that are declared, by name."""


R = TypeVar("R", bound=Record)


class Misfit(ValueError):
    """A JSON value is not what the field's annotation allows; the message names field, rule and value.

    Args:
        rule: What it must be.
        value: What it is.
        where: The way from the record to the value: `.cost.tokens`, `.scores[2].value`.
    """

    def __init__(self, rule: str, value: Json, where: str = "") -> None:
        text = json.dumps(value, default=str)  # in ASCII: half a character could not be printed
        text = text if len(text) < 60 else f"{text[:57]}..."
        super().__init__(f"{where.removeprefix('.') or 'it'} must be {rule}, but is {text}")
        self.rule, self.value, self.where = rule, value, where

    def within(self, name: str) -> Misfit:
        """The same of a record, list or mapping in which the value lies."""
        return Misfit(self.rule, self.value, name + self.where)


def added(default: Any) -> Any:
    """A field that a record did not have in its first version: left out of JSON, and of keys, where it has its default.

    Example: `shots: int = added(0)` in `Evaluation` leaves every key as it was; `Evaluation(shots=5)` gives another one.
    """
    return field(default=default, metadata={"added": True})


def field_types(kind: Annotation) -> dict[str, Annotation]:
    """The fields that a dataclass declares, with their annotations resolved."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in _declared(kind)}


def _declared(kind: type) -> list[Field[Any]]:
    return [item for item in fields(kind) if not (issubclass(kind, Record) and item.name == "unknown")]


def to_json(value: object) -> Json:
    """Dataclasses, tuples, paths and enums as plain JSON values; a field whose metadata says `json` has that name there."""
    kind: Annotation = type(value)
    return _writer(kind)(value)


# Writers are made once for each type, as readers are: a study's keys and records have millions of values.
@cache
def _writer(kind: Annotation) -> Callable[[Any], Json]:
    if is_dataclass(kind):
        return _record_writer(kind)
    if issubclass(kind, Mapping):
        return lambda value: {str(key): to_json(item) for key, item in value.items()}
    if issubclass(kind, list | tuple):
        return lambda value: [to_json(item) for item in value]
    if issubclass(kind, PurePath):
        return str
    return (lambda value: value.value) if issubclass(kind, StrEnum) else lambda value: value


def _record_writer(kind: Annotation) -> Callable[[Any], Json]:
    always = object()  # no field has it as its default
    written = [
        (item.name, item.metadata.get("json", item.name), item.default if item.metadata.get("added") else always)
        for item in _declared(kind)
    ]
    keeps_unknown = issubclass(kind, Record)

    def write(value: Any) -> Json:
        data = {}
        for name, as_name, omitted in written:
            item = getattr(value, name)
            if omitted is always or item != omitted:
                data[as_name] = to_json(item)
        return data | value.unknown if keeps_unknown and value.unknown else data

    return write


def canonical_json(value: Json) -> str:
    """JSON with sorted keys and no spaces; refuses NaN and infinities, which JSON does not have."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(value: Json) -> str:
    """SHA-256 of the canonical JSON of `value`, first 20 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:20]


def decode(kind: type[R], data: Json) -> R:
    """The inverse of `to_json`.

    A field that is absent, or null where its annotation has no None, takes its default.

    Args:
        kind: A dataclass that is a `Record`.
        data: Its JSON, parsed.

    Raises:
        Misfit: When a field has no value, or one that its annotation does not allow.
    """
    reader: _Reader = _reader(kind)  # type: ignore[arg-type]
    record: R = reader(data)
    return record


def read_records(path: Path, kind: type[R], event: str = "") -> list[R]:
    """The whole lines of a JSONL file as records; none for a missing file.

    Args:
        path: The file.
        kind: Of the records.
        event: Where lines are of several kinds: the `event` of those that are meant.

    Raises:
        StorageError: When one of them is not JSON, or not what a record of that kind must be.
    """
    try:
        lines = [line for line in read_lines(path) if not event or line.get("event") == event]
        canonical_json(lines).encode()  # Python's parser takes NaN and half characters, others do not
        return [decode(kind, line) for line in lines]
    except (ValueError, AttributeError) as error:
        raise StorageError(
            f"{path} holds a line that is not whole ({error}): restore it, or delete the folder"
        ) from error


def unknown_fields(value: object, where: str = "") -> Iterator[str]:
    """Dotted names of what a record's JSON has beside the fields that are declared, at every level."""
    if isinstance(value, Record):
        yield from (f"{where}{name}" for name in value.unknown)
        kind: Annotation = type(value)
        for name in _nesting(kind):
            yield from unknown_fields(getattr(value, name), f"{where}{name}.")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from unknown_fields(item, f"{where[:-1]}[{index}].")


@cache
def _nesting(kind: Annotation) -> list[str]:
    """The fields of a dataclass that hold records, or lists of them."""
    return [name for name, own in field_types(kind).items() if any(map(is_dataclass, (own, *get_args(own))))]


_Reader = Callable[[Json], Any]
"""Takes a JSON value, returns the field's; raises `Misfit`."""
_Test = tuple[str, Callable[[Json], bool]]
"""A rule in words, and whether a JSON value keeps it."""


# Readers are made once for each annotation: `get_type_hints` takes longer than a record.
@cache
def _reader(kind: Annotation) -> _Reader:
    if is_dataclass(kind):
        return _record_reader(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _member_reader({str(member): member for member in kind})
    origin: Annotation = get_origin(kind)
    arguments = get_args(kind)
    if origin is tuple:  # of one kind, whatever its length
        return _list_reader(_reader(arguments[0]))
    if origin is not None and origin not in (Union, UnionType, Literal):
        return _mapping_reader(_reader(arguments[1]))
    own = [part for part in arguments if part is not type(None)]
    if origin in (Union, UnionType) and len(own) == 1:
        element = _reader(own[0])
        return lambda value: None if value is None else element(value)
    return _scalar_reader(kind)


def _record_reader(kind: Annotation) -> _Reader:
    hints = field_types(kind)
    members = [
        (
            item.name,
            _reader(hints[item.name]),
            _allows_none(hints[item.name]),
            item.default is MISSING and item.default_factory is MISSING,
        )
        for item in _declared(kind)
    ]

    def read(value: Json) -> Any:
        if not isinstance(value, dict):
            raise Misfit("an object", value)
        arguments, name = {}, ""
        try:  # once around all fields, not around each: a study's records have a million
            for name, reader, nullable, required in members:
                if (own := value.get(name)) is not None:
                    arguments[name] = reader(own)
                elif nullable and name in value:
                    arguments[name] = None
                elif required:
                    raise Misfit("there", None)
        except Misfit as error:
            raise error.within(f".{name}") from None
        if len(value) > len(arguments) and (unknown := {name: value[name] for name in value.keys() - hints.keys()}):
            arguments["unknown"] = unknown
        return kind(**arguments)

    return read


def _read(reader: _Reader, value: Json, name: str) -> Any:
    try:
        return reader(value)
    except Misfit as error:
        raise error.within(name) from None


def _list_reader(element: _Reader) -> _Reader:
    def read(value: Json) -> Any:
        if not isinstance(value, list):
            raise Misfit("a list", value)
        return tuple([_read(element, item, f"[{index}]") for index, item in enumerate(value)])

    return read


def _mapping_reader(element: _Reader) -> _Reader:
    def read(value: Json) -> Any:
        if not isinstance(value, dict):
            raise Misfit("an object", value)
        return {name: _read(element, item, f".{name}") for name, item in value.items()}

    return read


def _member_reader(members: Mapping[str, StrEnum]) -> _Reader:
    def read(value: Json) -> Any:
        if not isinstance(value, str) or value not in members:
            raise Misfit(f"one of {', '.join(members)}", value)
        return members[value]

    return read


def _scalar_reader(kind: Annotation) -> _Reader:
    tests: list[_Test]
    if kind is Any:
        return lambda value: value
    origin: Annotation = get_origin(kind)
    if origin is Literal:
        tests = [(f"one of {', '.join(map(str, get_args(kind)))}", lambda value: value in get_args(kind))]
    else:
        tests = [_SCALARS[part] for part in get_args(kind) or (kind,)]

    rule = " or ".join(rule for rule, _ in tests)
    test = tests[0][1] if len(tests) == 1 else lambda value: any(test(value) for _, test in tests)

    def read(value: Json) -> Any:
        if not test(value):
            raise Misfit(rule, value)
        return value

    return read


def _is_integer(value: Json) -> bool:
    # True is an int in Python, not in JSON
    return isinstance(value, int) and not isinstance(value, bool) and -LARGEST_INTEGER <= value <= LARGEST_INTEGER


def _is_number(value: Json) -> bool:
    return math.isfinite(value) if isinstance(value, float) else _is_integer(value)


_SCALARS: Mapping[Annotation, _Test] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number of 64 bits", _is_integer),
    float: ("a finite number", _is_number),
    str: ("a text", lambda value: isinstance(value, str)),
}


def _allows_none(hint: Annotation) -> bool:
    return hint is Any or type(None) in get_args(hint)
