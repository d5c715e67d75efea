"""Whether two results folders hold the same: every table of their databases, but for columns that say when, not what."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.records.codec import Record

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MAY_DIFFER: Mapping[str, str] = MappingProxyType(
    {
        "started_at": "when a trial started",
        "asked_at": "when the study asked for it",
        "reused": "whether its record was there by then: a torn line of the study's list is written anew",
    }
)
"""Columns that depend on when a trial ran, each with what it says."""


@dataclass(frozen=True, kw_only=True)
class Compared(Record):
    """One table of both."""

    table: str
    rows: tuple[int, int]
    columns: tuple[str, ...]
    """Those that were compared."""
    digests: tuple[str, str]
    """SHA-256 of the sorted rows, as hexadecimal digits."""

    @property
    def equal(self) -> bool:
        """Whether both have the same rows, in whatever order."""
        return self.digests[0] == self.digests[1]


@dataclass(frozen=True, kw_only=True)
class Certificate(Record):
    """What was compared of two databases, and what was left out."""

    tables: tuple[Compared, ...]
    left_out: Mapping[str, str]
    """Columns that were not compared, each with what it says."""

    @property
    def equal(self) -> bool:
        """Whether all that was compared is the same."""
        return all(table.equal for table in self.tables)

    def text(self) -> str:
        """A line for each table that has rows, and what was left out."""
        lines = [
            f"  {one.table:<14} {one.rows[0]:>6} rows x {len(one.columns):>3} columns  "
            + (f"equal, sha256 {one.digests[0][:16]}" if one.equal else f"DIFFERENT from {one.rows[1]} rows")
            for one in self.tables
            if any(one.rows)
        ]
        left_out = "; ".join(f"{name} ({what})" for name, what in self.left_out.items())
        return "\n".join([*lines, f"  may differ: {left_out}"])


def certify(ours: DuckDBPyConnection, theirs: DuckDBPyConnection) -> Certificate:
    """Compare two databases of this version of harness.

    Args:
        ours: One of them.
        theirs: The other.
    """
    tables = []
    for table, columns in compared_columns(ours).items():
        both = [rows_of(connection, table, columns) for connection in (ours, theirs)]
        first, second = (hashlib.sha256(repr(rows).encode()).hexdigest() for rows in both)
        tables.append(
            Compared(table=table, rows=(len(both[0]), len(both[1])), columns=columns, digests=(first, second))
        )
    return Certificate(tables=tuple(tables), left_out=MAY_DIFFER)


def compared_columns(connection: DuckDBPyConnection) -> dict[str, tuple[str, ...]]:
    """Columns of each table but those that may differ."""
    found = connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal AND table_name IN "
        "(SELECT table_name FROM duckdb_tables() WHERE NOT temporary) ORDER BY table_name, column_index"
    ).fetchall()
    columns: dict[str, tuple[str, ...]] = {}
    for table, column in found:
        if column not in MAY_DIFFER:
            columns[table] = (*columns.get(table, ()), column)
    return columns


def rows_of(connection: DuckDBPyConnection, table: str, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """A table's rows, sorted."""
    names = ", ".join(f'"{column}"' for column in columns)
    return sorted(connection.execute(f'SELECT {names} FROM "{table}"').fetchall(), key=repr)
