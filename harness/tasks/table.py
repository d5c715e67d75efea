"""Rows of JSON as a table whose cells are what they were.

Arrow makes 5.0 of 5 beside 2.5, gives a nested value the keys of other rows', and refuses mixed types and long numbers. Such a
column is held as JSON and shown as what it is, so a column that nobody uses stops nobody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.tasks.file import Keys

if TYPE_CHECKING:
    from datasets import Dataset


def table(files: Sequence[tuple[Path, Sequence[Keys]]]) -> Dataset:
    """Rows as a table whose cells are what they were.

    Args:
        files: Rows by the file that they are from, for what `mixed_columns` says.
    """
    from datasets import Dataset

    rows = [row for _, rows in files for row in rows]
    # The columns of all rows: `Dataset.from_list` takes those of the first only.
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    if (broken := next(filter(_is_broken, columns), None)) is not None:
        raise SpecError(f"{files[0][0]} must name its columns in text, but {broken!r} has half a character: rename it")
    inexact = [name for name, values in columns.items() if not _exact(values)]
    for name in inexact:
        columns[name] = [_JSON + json.dumps(value) for value in columns[name]]
    made = Dataset.from_dict(columns)
    if inexact:
        places = [f"{path.name}, row {number}" for path, rows in files for number in range(1, len(rows) + 1)]
        mixed = {name: _mixture([row.get(name) for row in rows], places) for name in inexact}
        # It stays with the rows through selections and functions, unlike an attribute.
        made.info.description = json.dumps({name: problem for name, problem in mixed.items() if problem})
        made = made.with_transform(partial(_from_json, frozenset(inexact)))
    return made


def is_exact(rows: Dataset) -> bool:
    """Whether Arrow holds all cells of a table as they are."""
    return bool(rows.format["type"] != "custom")


def mixed_columns(rows: Dataset) -> dict[str, str]:
    """Columns whose values are not all of one kind, each with where two differ."""
    found: dict[str, str] = json.loads(rows.info.description or "{}") if not is_exact(rows) else {}
    return found


def docs(rows: Dataset) -> list[Keys]:
    """All rows of a table; a hundred times faster than iterating over it."""
    columns = rows[:]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


_JSON = "\ue000json:"
"""Begins the text of a cell that is held as JSON; a function over rows may put other cells beside them."""


def _from_json(columns: frozenset[str], batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        name: [
            json.loads(cell[len(_JSON) :]) if isinstance(cell, str) and cell.startswith(_JSON) else cell
            for cell in cells
        ]
        if name in columns
        else cells
        for name, cells in batch.items()
    }


def _exact(values: Sequence[object]) -> bool:
    """Whether Arrow gives these values back as they are, not 5 as 5.0."""
    import pyarrow as pa

    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return False
    plain = set(map(type, values)) - {type(None)}
    if len(plain) < 2 and not plain & {list, dict}:
        return True
    before, after = (json.dumps(cells, sort_keys=True) for cells in (values, array.to_pylist()))
    return before == after


_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}


def _mixture(values: Sequence[object], places: Sequence[str]) -> str:
    """Where values of two kinds stand; empty where all are of one."""
    first: dict[str, int] = {}
    for index, value in enumerate(values):
        if value is not None:
            first.setdefault(_KINDS[type(value)], index)
        if len(first) == 2:
            (one, start), (other, end) = first.items()
            return f"{places[end]} holds {other} ({str(values[end])[:40]}) and {places[start]} {one} ({str(values[start])[:40]})"
    broken = next((index for index, value in enumerate(values) if isinstance(value, str) and _is_broken(value)), None)
    return "" if broken is None else f"{places[broken]} holds half a character"


def _is_broken(text: str) -> bool:
    """Whether a text has half of a pair of code units, which JSON can spell and no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def is_value(value: object) -> bool:
    """Whether there is something to show: neither nothing, nor what is no number though it should be one."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
