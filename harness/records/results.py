"""Reads and writes trial records: one JSON file each, whole or not there at all."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import StorageError
from harness.files import write_atomically
from harness.records.paths import Paths
from harness.records.trial import TrialResult, result_from_json, to_json


def write_result(paths: Paths, result: TrialResult) -> Path:
    """Write a trial's record; returns its path."""
    path = paths.record(result.config.key)
    write_atomically(path, json.dumps(_finite(to_json(result)), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_result(path: Path) -> TrialResult:
    """Read one record.

    Raises:
        StorageError: When it is missing, cut short, or of an unknown schema.
    """
    try:
        return result_from_json(json.loads(path.read_text()))
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is not a whole record ({type(error).__name__}: {error}): delete it and run the study again"
        ) from error


def find_result(paths: Paths, key: str) -> TrialResult | None:
    """The record of a key, or None where there is none or where it is damaged (that trial must run again)."""
    path = paths.record(key)
    if not path.exists():
        return None
    try:
        return read_result(path)
    except StorageError:
        return None


def iterate_results(paths: Paths) -> Iterator[tuple[Path, TrialResult | StorageError]]:
    """Every record below `results/trials`, in key order; damaged ones as the error that says what is wrong."""
    for path in filter(Path.exists, map(Path, paths.records())):
        try:
            yield path, read_result(path)
        except StorageError as error:
            yield path, error


def _finite(value: Any) -> Any:
    """Non-finite floats become None: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
