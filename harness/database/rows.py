"""Rows of a query as dataclasses, matched by the names of the columns, so that no query depends on their order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from harness.records.codec import decode
from harness.records.trial import Stage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Row = TypeVar("Row")
Key = TypeVar("Key", bound="str | float | tuple[str | float, ...]")


def read_rows(connection: DuckDBPyConnection, sql: str, parameters: Sequence[str], kind: type[Row]) -> list[Row]:
    """The rows of a query.

    Args:
        connection: To the database.
        sql: A query whose columns are named as the fields of `kind`, in any order.
        parameters: What stands for the question marks of the query.
        kind: A dataclass with keyword arguments.

    Raises:
        TypeError: When the query's columns are not the fields of `kind`.
    """
    cursor = connection.execute(sql, parameters)
    columns = [str(column[0]) for column in cursor.description or ()]
    declared: Any = kind
    if set(columns) != (names := {item.name for item in fields(declared)}):
        raise TypeError(
            f"the query's columns must be the fields of {kind.__name__}, but differ in {sorted(names ^ set(columns))}: "
            "change either"
        )
    return [kind(**dict(zip(columns, values, strict=True))) for values in cursor.fetchall()]


def stages_of(text: str) -> tuple[Stage, ...]:
    """The stages in the column `trials.stages`."""
    # DuckDB gives every stage every field; one that its record was written without is null there, which means its default
    return tuple(decode(Stage, stage) for stage in json.loads(text))


def grouped(rows: Iterable[Row], by: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Rows by their key.

    Args:
        rows: In any order.
        by: The key of a row.

    Returns:
        Keys in rising order; the rows of each in the order given.
    """
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(by(row), []).append(row)
    return {key: groups[key] for key in sorted(groups)}
