"""What of a task's splits makes its scores say little: rows that two of them share, few rows, or one answer to all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, islice

import numpy as np

from harness.errors import SpecError
from harness.tasks.splits import row_hash
from harness.tasks.table import docs
from harness.tasks.task import SPLITS, Task

NGRAM = 13
"""Words in a row that count as a copy (Brown et al. 2020, arXiv:2005.14165, appendix C)."""
NAMES = {"train": "training", "validation": "validation"}
FEWEST = 6
"""Items of which all must be right for one model and wrong for another before a two-sided sign test gives p < .05."""


@dataclass(frozen=True)
class Overlap:
    """How many texts of one split are among those of another."""

    exact: int
    """Equal after lower-casing and collapsing white space."""
    ngram: int
    """Sharing at least one run of 13 words; texts shorter than that never do."""


class Texts:
    """The texts of a split, prepared once for being compared with those of several others."""

    def __init__(self, texts: Sequence[str], whole: Sequence[str] | None = None) -> None:
        """Take them.

        Args:
            texts: One for each row.
            whole: What is compared as a whole for each row, where it is more than the text.
        """
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        self._lengths = np.array([len(row) for row in words], dtype=np.int64)
        hashes = np.fromiter(map(hash, chain.from_iterable(words)), dtype=np.int64, count=int(self._lengths.sum()))
        self._words = hashes.astype(np.uint64)
        self._whole = [" ".join(text.lower().split()) for text in (texts if whole is None else whole)]

    def shared_with(self, later: Texts) -> Overlap:
        """How many of the later split's texts are among these."""
        known, mine, (theirs, rows) = set(self._whole), self._sorted_runs, later._runs
        places = np.searchsorted(mine, theirs)
        found = places < len(mine)
        found[found] = mine[places[found]] == theirs[found]
        return Overlap(sum(text in known for text in later._whole), len(set(rows[found].tolist())))

    @cached_property
    def _sorted_runs(self) -> np.ndarray:
        return np.sort(self._runs[0])

    @cached_property
    def _runs(self) -> tuple[np.ndarray, np.ndarray]:
        """A hash of every run of 13 words, and the row that it is in; both of shape (runs,)."""
        rows = np.repeat(np.arange(len(self._lengths)), self._lengths)
        count = max(0, len(rows) - NGRAM + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        for offset in range(NGRAM):  # a polynomial of the words' hashes in an odd number, modulo 2^64
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + self._words[offset : offset + count] + np.uint64(1)
        within = rows[:count] == rows[NGRAM - 1 :][:count]
        return hashes[within], rows[:count][within]


def overlap(first: Sequence[str], second: Sequence[str]) -> Overlap:
    """Count the second texts that are also among the first, exactly or by 13 words in a row."""
    return Texts(first).shared_with(Texts(second))


def task_overlap(task: Task) -> dict[tuple[str, str], Overlap]:
    """Overlap of each two of a task's splits in the columns that hold texts; rows of the later one are counted.

    A column with fewer different values than a tenth of its rows holds labels or instructions: those are no leak.
    """
    splits = {name: docs(task.split(name)) for name in SPLITS if name in task.parts}
    if not all(splits.values()):
        return {}
    largest = max(splits.values(), key=len)
    told = [
        column
        for column in largest[0]
        if all(column in rows[0] for rows in splits.values()) and _tells(_text(row[column]) for row in largest)
    ]
    # Messages and other nested values are compared as a whole only: every row has their keys, and perhaps one beginning.
    plain = [column for column in told if all(isinstance(row[column], str) for row in largest)]
    texts = {name: Texts(_joined(rows, plain), _joined(rows, told)) for name, rows in splits.items()}
    return {(one, other): texts[one].shared_with(texts[other]) for one, other in combinations(splits, 2) if told}


def _tells(texts: Iterable[str | None]) -> bool:
    """Whether a column tells its rows apart."""
    values = list(texts)
    return None not in values and len(set(values)) > len(values) / 10


def _text(value: object) -> str | None:
    """A cell as text; None where it is neither a text nor a nested value."""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, default=str) if isinstance(value, list | dict) else None


def _joined(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> list[str]:
    return ["\n".join(_text(row[column]) or "" for column in columns) for row in rows]


def overlap_notes(task: Task) -> list[str]:
    """What a reader of a task's scores must know of rows that its splits share."""
    return [
        f"overlap: of {len(task.split(other))} {other} rows, {found.exact} stand in the {NAMES[one]} rows word for word "
        f"and {found.ngram} share {NGRAM} words in a row with one"
        for (one, other), found in task_overlap(task).items()
        if found.exact or found.ngram
    ]


def size_notes(task: Task, answers: Mapping[str, Iterable[str]]) -> list[str]:
    """What a reader must know of splits that are small, or whose rows have one answer.

    Args:
        task: The task.
        answers: Right answers to the rows of each split.
    """
    notes = [
        f"the {name} split has {count} rows: no difference between two models can show on fewer than {FEWEST}"
        for name in ("validation", "test")
        if name in task.parts and (count := len(task.split(name))) < FEWEST
    ]
    for name, given in answers.items():
        different = list(islice(_different(given), 2))
        if len(different) == 1 and len(task.split(name)) > 1:
            notes.append(
                f"every row of the {name} split has the same answer, {different[0][:40]!r}: guessing it scores as well"
            )
    return notes


def _different(values: Iterable[str]) -> Iterator[str]:
    """The values that were not there before."""
    seen: set[str] = set()
    for value in values:
        if value not in seen:
            seen.add(value)
            yield value


def refuse_same_rows(task: Task) -> None:
    """Raise `SpecError` where two splits that a task's data name hold the same rows."""
    names = list(dict.fromkeys(task.parts[name].split for name in SPLITS if name in task.parts))
    if len(names) < 2:
        return
    rows = {split: {row_hash(row) for row in docs(task.source.load(split))} for split in names}
    for one, other in combinations(names, 2):
        if rows[one] == rows[other]:
            raise SpecError(
                f"task {task.name}: the splits '{one}' and '{other}' of its data must differ, but hold the same "
                f"{len(rows[one])} rows, so that scores would be those of rows that were trained on or selected by: name "
                "other data for one, or leave its key out"
            )
