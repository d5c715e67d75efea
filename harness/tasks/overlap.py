"""How many rows of one split of a task are among those of another: a score on rows that were trained on says little."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.tasks.task import Task

NGRAM = 13
"""Words in a row that count as a copy (Brown et al. 2020, arXiv:2005.14165, appendix C)."""


@dataclass(frozen=True)
class Overlap:
    """How many test texts are among the training texts."""

    exact: int
    """Equal after lower-casing and collapsing white space."""
    ngram: int
    """Sharing at least one run of 13 words; texts shorter than that never do."""
    train: int
    test: int

    def __str__(self) -> str:
        return (
            f"of {self.test} test rows, {self.exact} stand in the training rows word for word "
            f"and {self.ngram} share {NGRAM} words in a row with one"
        )


def overlap(train: Sequence[str], test: Sequence[str]) -> Overlap:
    """Count the test texts that are also training texts, exactly or by 13 words in a row.

    Args:
        train: Texts that are trained on.
        test: Texts that are scored.
    """
    known = {_normal(text) for text in train}
    # Only runs of words that the test texts have are kept of the training texts, which are far more.
    wanted = {gram for text in test for gram in _ngrams(text)}
    shared = {gram for text in train for gram in _ngrams(text) if gram in wanted}
    exact = sum(_normal(text) in known for text in test)
    ngram = sum(any(gram in shared for gram in _ngrams(text)) for text in test)
    return Overlap(exact, ngram, len(train), len(test))


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _ngrams(text: str) -> Iterator[int]:
    """Hashes of all runs of 13 words; punctuation does not count."""
    words = re.findall(r"\w+", text.lower())
    # Hashes, because tuples of words would take several times the memory.
    return (hash(tuple(words[start : start + NGRAM])) for start in range(len(words) - NGRAM + 1))


def task_overlap(task: Task) -> Overlap:
    """Overlap of a task's training and test rows, in the columns that hold texts.

    A column with fewer different values than a tenth of its rows holds labels or instructions: those are no leak.
    """
    train, test = task.split("train"), task.split("test")
    columns = [
        name
        for name in train.column_names
        if name in test.column_names
        and all(isinstance(value, str) for value in train[name])
        and len(set(train[name])) > len(train) / 10
    ]
    texts = [["\n".join(str(row[name]) for name in columns) for row in rows] for rows in (train, test)]
    return overlap(*texts) if columns else Overlap(0, 0, len(train), len(test))
