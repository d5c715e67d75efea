"""Reads separated values (CSV): cells are texts, as they stand in the file; the separator is found where none is stated."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError
from harness.tasks.file import Keys
from harness.tasks.table import docs

if TYPE_CHECKING:
    from datasets import Dataset

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
"""Between the fields of a CSV file, the likeliest first."""


def csv_rows(path: Path, text: str, options: Keys) -> list[Keys]:
    """Rows of separated values; an empty cell has no value."""
    csv.field_size_limit(2**31 - 1)
    separator = separator_of(path, text, options)
    records = _records(path, text, separator)
    _, header = next(records)
    names = _header(path, header)
    rows = []
    for number, record in records:
        if len(record) != len(names):
            raise SpecError(
                f"{path}, line {number}: a row must have the {len(names)} fields of the header, but has {len(record)} between "
                f"{SEPARATORS.get(separator, repr(separator))}: put quotes around a field that holds one, or set dataset_kwargs.sep"
            )
        rows.append({name: cell or None for name, cell in zip(names, record, strict=True)})
    return rows


def separator_of(path: Path, text: str, options: Keys) -> str:
    """What separates the fields: as stated, else what gives the first lines equally many fields, else what the header has most of.

    Raises:
        SpecError: When what is stated is not one character.
    """
    stated = options.get("sep", options.get("delimiter"))
    if stated is not None:
        stated = {"\\t": "\t"}.get(str(stated), str(stated))
        if len(stated) != 1:
            raise SpecError(f"{path}: dataset_kwargs.sep must be one character, but is {stated!r}: correct it")
        return str(stated)
    best, most = ",", 1
    for separator in SEPARATORS:
        try:
            records = [record for _, record in islice(_records(path, text, separator), 100)]
        except SpecError:
            continue
        if len(records[0]) > 1 and len({len(record) for record in records}) == 1:
            return separator
        if len(records[0]) > most:
            best, most = separator, len(records[0])
    return best


def _records(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not empty, each with the line on which it ends."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for record in reader:
            if record:
                yield reader.line_num, record
    except csv.Error as error:
        raise SpecError(
            f"{path}, line {reader.line_num} must be separated values, but is not ({error}): close the quotes, or write a quote "
            "inside a field twice"
        ) from error


def _header(path: Path, header: list[str]) -> list[str]:
    # Many tools write the number of a row into a first column without a name.
    names = [name or ("Unnamed: 0" if index == 0 and len(header) > 1 else "") for index, name in enumerate(header)]
    if "" in names:
        raise SpecError(
            f"{path}: the header must name every column, but has no name for column {names.index('') + 1}: add it"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(f"{path}: the header must name each column once, but names {twice[0]!r} more often: rename one")
    return names


def as_pandas_reads(rows: Dataset, paths: Sequence[Path], options: Keys) -> bool:
    """Whether pandas makes the same of CSV files: it takes 007 for 7, and None for nothing."""
    import pandas as pd
    from datasets import Dataset, concatenate_datasets

    try:
        tables = [Dataset.from_pandas(pd.read_csv(path, **options), preserve_index=False) for path in paths]
        return docs(concatenate_datasets(tables)) == docs(rows)
    except (ValueError, TypeError, OSError, OverflowError):  # pandas' and pyarrow's errors are ValueErrors
        return False
