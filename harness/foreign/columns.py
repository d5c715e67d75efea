"""The values of a table's columns, converted as a mapping says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_of
from harness.foreign.mapping import UNITS, Cell

if TYPE_CHECKING:
    import pandas as pd


class Columns:
    """The values of a table by what the mapping says of them, converted; refuses columns that are not there."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table

    def __call__(self, cell: Cell | None, where: str) -> list[Any]:
        """One value per row, None where there is none.

        Args:
            cell: Where it comes from; None gives nothing.
            where: The place in the mapping, for messages.

        Raises:
            SpecError: When the column is not there, or a number was meant and is none.
        """
        if cell is None:
            return [None] * len(self.table)
        values = [cell.value] * len(self.table) if cell.column is None else self.raw(cell.column, where)
        if cell.map:
            values = [cell.map.get(as_key(value), value) for value in values]
        if cell.unit:
            values = [_number(value, where, cell.column or "value", UNITS[cell.unit]) for value in values]
        return values

    def raw(self, column: str, where: str) -> list[Any]:
        """A column's values as they are, None where there is none.

        Args:
            column: Its name.
            where: The place in the mapping, for messages.
        """
        if column not in self.table.columns:
            raise SpecError(f"{where}: " + one_of("column", column, list(map(str, self.table.columns))))
        own = self.table[column]
        return [_plain(value) for value in own.astype(object).where(own.notna(), None).tolist()]

    def numbers(self, cell: Cell | None, where: str) -> list[float | None]:
        """The same as finite numbers.

        Args:
            cell: Where they come from.
            where: The place in the mapping, for messages.
        """
        name = cell.column if cell and cell.column else where
        return [_number(value, where, name) for value in self(cell, where)]

    def texts(self, cell: Cell, where: str) -> list[str]:
        """The same as texts, which every row must have.

        Args:
            cell: Where they come from.
            where: The place in the mapping, for messages.

        Raises:
            SpecError: When a row has none.
        """
        values = self(cell, where)
        if None in values:
            raise SpecError(
                f"{where}: every row must have a value, but row {values.index(None) + 1} has none: "
                "fill it, or leave such rows out by `where`"
            )
        return [as_key(value) for value in values]


def _plain(value: Any) -> Any:
    """A value as Python has it: numbers and arrays of numpy become numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def as_key(value: Any) -> str:
    """A value as a mapping file writes it: 3.0 is 3, true is true.

    Args:
        value: Of a cell that is not empty.
    """
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number(value: Any, where: str, column: str, factor: float = 1.0) -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(value) * factor
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{where}: column {column!r} must hold numbers, but has {str(value)[:60]!r}: name another, or map it"
        ) from error
    return number if math.isfinite(number) else None


def selected(table: pd.DataFrame, where: Mapping[str, Sequence[Any]]) -> pd.DataFrame:
    """The rows whose columns have the values asked for.

    Args:
        table: Of runs.
        where: Column to the values that are taken.

    Raises:
        SpecError: When a column is not there, or no row is left.
    """
    columns = Columns(table)
    for column, wanted in where.items():
        texts = [None if value is None else as_key(value) for value in columns.raw(column, "where")]
        kept = [text in {as_key(value) for value in wanted} for text in texts]
        if not any(kept):
            known = sorted({text for text in texts if text is not None})[:20]
            raise SpecError(
                f"where: {column} must leave some rows, but none has {', '.join(map(str, wanted))}: it has {', '.join(known)}"
            )
        table, columns = table[kept], Columns(table[kept])
    return table
