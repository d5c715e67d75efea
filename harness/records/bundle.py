"""Many records in one file: runs that others made, and runs of the harness that are kept compacted.

A bundle is a Parquet file with two columns: `key`, and `record`, the text of an ordinary record with its digest. What the
runs have in common (where they come from, facts of their tasks and models) is a `Bundle` in the file's metadata.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import StorageError
from harness.files import make_folder, parse_json
from harness.records.codec import Record, canonical_json, decode, to_json
from harness.records.results import compact_text
from harness.records.trial import TrialResult

Facts = Mapping[str, float | str]
_METADATA = b"harness"
_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class Bundle(Record):
    """What the runs of a bundle have in common."""

    source: str
    """Who ran them, and under which licence they may be used, in a sentence."""
    made_at: str
    """UTC, ISO 8601."""
    tasks: Mapping[str, Facts] = field(default_factory=dict)
    """What is known of each task, as `tasks.facts.task_features` names it."""
    models: Mapping[str, Facts] = field(default_factory=dict)
    """What is known of each base model, as `models.facts.model_features` names it."""


def write_bundle(path: Path, bundle: Bundle, results: Iterable[TrialResult]) -> int:
    """Write a bundle, whole or not at all; returns how many records it has.

    Args:
        path: The file; one that is there is replaced.
        bundle: What the runs have in common.
        results: Their records; of two with one key the first counts.

    Raises:
        StorageError: When the file system refuses.
        Misfit: When a record could not be read again.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    records: dict[str, str] = {}
    for result in results:
        records.setdefault(result.config.key, compact_text(result))
    schema = pa.schema(
        [("key", pa.string()), ("record", pa.large_string())],
        metadata={_METADATA: canonical_json(to_json(bundle)).encode()},
    )
    table = pa.table({"key": list(records), "record": list(records.values())}, schema=schema)
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.new")
    try:
        pq.write_table(table, beside, compression="zstd", compression_level=9, row_group_size=_AT_ONCE)
        os.replace(beside, path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}): free space or fix permissions") from error
    finally:
        beside.unlink(missing_ok=True)
    return len(records)


def read_bundle(path: Path) -> Bundle:
    """What the runs of a bundle have in common, without the runs.

    Raises:
        StorageError: When the file is no whole bundle.
    """
    import pyarrow.parquet as pq

    try:
        return decode(Bundle, parse_json((pq.read_schema(path).metadata or {})[_METADATA]))
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def bundled(path: Path) -> Iterator[tuple[str, bytes]]:
    """Key and text of each record of a bundle, in the order in which they were written.

    Raises:
        StorageError: When the file is no whole bundle.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_AT_ONCE, columns=["key", "record"]):
                yield from zip(batch[0].to_pylist(), map(str.encode, batch[1].to_pylist()), strict=True)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{path} is not a whole bundle of records ({' '.join(str(error).split())[:120]}): import it again"
    )
