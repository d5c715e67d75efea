"""Which of a task's rows make up which split.

Splits that the data does not have are made by a hash of each row's content: the same on every machine, in every order of
the rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.tasks.table import docs, table

if TYPE_CHECKING:
    from datasets import Dataset

    from harness.tasks.metadata import Pieces

Doc = Mapping[str, Any]
"""A row of a task's data, column by column; lm-eval calls it a document."""


@dataclass(frozen=True)
class Part:
    """A share of a split of the data, in the order of the rows' hashes."""

    split: str
    low: float = 0.0
    high: float = 1.0

    def take(self, rows: Dataset) -> Dataset:
        """The rows of this share, in their own order; equal rows stay together, and no share of some rows is empty."""
        if (self.low, self.high) == (0.0, 1.0):
            return rows
        order = hash_order(rows)
        start, stop = (_boundary(order, share) for share in (self.low, self.high))
        return rows.select(sorted(index for _, index in order[start:stop]))


def split_parts(train: str | None, validation: str | None, test: str | None, where: str) -> dict[str, Part]:
    """Which part of the data serves as which split.

    With a training split, a missing validation split is a tenth of it; a validation split without a test split serves
    as the test split, since that is what lm-eval scores. Without one (off-target tasks), the one split that there is
    gives a fifth for validation and the rest for testing.

    Args:
        train: The task file's `training_split`.
        validation: Its `validation_split`.
        test: Its `test_split`.
        where: The task, for error messages.

    Raises:
        SpecError: When no split is named, or training and testing name the same one.
    """
    validation = None if validation == test else validation
    if train and train in (validation, test):
        raise SpecError(f"{where}: training_split must not be scored on, but is '{train}' twice: name another split")
    only = validation or test
    if not (train or only):
        raise SpecError(f"{where}: test_split must name a split of the data, but is missing: add it")
    if validation and test:
        parts = {"validation": Part(validation), "test": Part(test)}
        return parts | ({"train": Part(train)} if train else {})
    if not train:
        return {"validation": Part(str(only), 0.0, 0.2), "test": Part(str(only), 0.2, 1.0)}
    if only:
        return {"train": Part(train, 0.1, 1.0), "validation": Part(train, 0.0, 0.1), "test": Part(only)}
    return {"train": Part(train, 0.2, 1.0), "validation": Part(train, 0.0, 0.1), "test": Part(train, 0.1, 0.2)}


def without_scored(
    train: str | None, validation: str | None, test: str | None
) -> tuple[tuple[str | None, str | None, str | None], list[str]]:
    """The splits of a file of lm-eval's, which may name what is scored as the split for examples in prompts.

    Args:
        train: Its `training_split`.
        validation: Its `validation_split`.
        test: Its `test_split`.

    Returns:
        The splits without the training split where that is what lm-eval scores, or without the validation split where only
        that is; and a note where nothing is left to train on.
    """
    if not train or train not in (validation, test):
        return (train, validation, test), []
    if train == (test or validation):
        note = f"its split '{train}' is scored, so that nothing is left to train on"
        return (None, None if validation == train else validation, train), [note]
    return (train, None, test), []


def row_hash(row: Doc) -> str:
    """SHA-256 of a row as JSON with sorted keys."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_order(rows: Dataset) -> list[tuple[str, int]]:
    """Hash and index of every row, sorted by hash."""
    return sorted((row_hash(row), index) for index, row in enumerate(docs(rows)))


def _boundary(order: Sequence[tuple[str, int]], share: float) -> int:
    count = round(share * len(order)) if share in (0.0, 1.0) else max(1, round(share * len(order)))
    # Equal rows must not stand on both sides: one would be trained on and the other scored.
    while 0 < count < len(order) and order[count][0] == order[count - 1][0]:
        count += 1
    return min(count, len(order))


def in_pieces(rows: Dataset, pieces: Pieces, name: str) -> Dataset:
    """Rows with a column's long texts cut, a row for each piece.

    Args:
        rows: Of a task.
        pieces: The column, and how long its texts may be.
        name: The task's.

    Raises:
        SpecError: When there is no such column.
    """
    column, longest = pieces.column, pieces.max_chars
    if column not in rows.column_names:
        raise SpecError(
            f"task {name}: metadata.pieces must be {{column, max_chars}} with one of the columns "
            f"{', '.join(rows.column_names)}, but is {pieces.model_dump()!r}: correct it"
        )
    cut_up = [row | {column: piece} for row in docs(rows) for piece in cut(str(row[column] or ""), longest)]
    return table([(Path(name), cut_up)])


def cut(text: str, max_chars: int) -> list[str]:
    """A long text in pieces of at most `max_chars` characters.

    It is cut after a blank line where a piece has one, else after a line, a sentence or a word, else anywhere. Joined,
    the pieces are the text, apart from pieces of white space, which are left out.
    """
    pieces = []
    while len(text) > max_chars:
        window = text[:max_chars]
        ends = (window.rfind(mark) + len(mark) for mark in ("\n\n", "\n", ". ", " ") if window.rfind(mark) > 0)
        end = next(ends, max_chars)
        pieces.append(text[:end])
        text = text[end:]
    return [piece for piece in [*pieces, text] if piece.strip()]
