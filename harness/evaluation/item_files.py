"""Writes what models made of single items beside the record of their trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from harness.evaluation.evaluate import Evaluated
from harness.files import write_atomically


def write_items(path: Path, outcomes: Sequence[Evaluated]) -> None:
    """Write item-level outcomes as Parquet, whole or not at all.

    Raises:
        StorageError: When the file system refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet

    # Groups may share a task, whose items are then the same.
    tasks = {(one.score.task, one.score.comparability): one for whole in outcomes for one in whole.tasks or (whole,)}
    rows = [
        {name: getattr(outcome.score, name) for name in ("task", "split", "metric")}
        | {name: getattr(item, name) for name in ("doc_hash", "prediction", "answer_bits", "pseudo_value")}
        | {"value": None if math.isnan(item.value) else item.value}
        for outcome in tasks.values()
        for item in outcome.items
    ]
    texts, numbers = ("task", "split", "metric", "doc_hash", "prediction"), ("value", "answer_bits", "pseudo_value")
    kinds = dict.fromkeys(texts, pa.string()) | dict.fromkeys(numbers, pa.float64())
    buffer = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items()))), buffer)
    write_atomically(path, buffer.getvalue().to_pybytes())
