"""Where every file lies, and how records are written and read: whole, or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import StorageError
from harness.records import TrialResult, result_from_json, to_json


@dataclass(frozen=True)
class Layout:
    """Every path that the harness writes, computed in one place."""

    results: Path = Path("results")
    reports: Path = Path("reports")

    @property
    def trials(self) -> Path:
        """Folder of all trials, shared by all studies."""
        return self.results / "trials"

    @property
    def database(self) -> Path:
        """The DuckDB file, derived from the records."""
        return self.results / "harness.duckdb"

    def trial(self, key: str) -> Path:
        """A trial's folder, in one of 256 by the key's first two digits, so that no folder grows too wide."""
        return self.trials / key[:2] / key

    def record(self, key: str) -> Path:
        """A trial's record."""
        return self.trial(key) / "record.json"

    def items(self, key: str) -> Path:
        """A trial's item-level outcomes."""
        return self.trial(key) / "items.parquet"

    def checkpoint(self, key: str) -> Path:
        """Where a trial that stopped at a rung left what its continuation needs."""
        return self.trial(key) / "checkpoint"

    def rungs(self, key: str) -> Path:
        """Which lower rungs of a full-fidelity trial left a checkpoint: one small file each."""
        return self.trial(key) / "rungs"

    def traceback(self, key: str) -> Path:
        """The traceback of a trial that crashed."""
        return self.trial(key) / "traceback.txt"

    def model(self, key: str) -> Path:
        """A trial's tuned model, where it was asked to keep it."""
        return self.trial(key) / "model"

    @property
    def cache(self) -> Path:
        """What takes long and can be computed again; deleting it loses nothing."""
        return self.results / "cache"

    @property
    def machine(self) -> Path:
        """What was measured of the machines that ran trials, which all trials go by."""
        return self.results / "machine"

    def study(self, name: str) -> Path:
        """What the driver knows of a study: its file, its trials and why each ran, its jobs and its lock."""
        return self.results / "studies" / name

    def report(self, name: str) -> Path:
        """A study's report."""
        return self.reports / f"{name}.html"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the whole new one, never a part.

    Raises:
        StorageError: When the file system refuses (full, read-only, no permission).
    """
    _write(path, content, os.replace)


def write_once(path: Path, content: str | bytes) -> None:
    """Write as `write_atomically` does, but only where there is no file yet: the first to write wins.

    Raises:
        StorageError: When the file system refuses (full, read-only, no permission).
    """
    _write(path, content, _unless_there)


def _unless_there(temporary: str, path: Path) -> None:
    try:
        os.link(temporary, path)  # fails where there is a file, unlike a rename
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        os.replace(temporary, path)
        return
    os.unlink(temporary)


def _write(path: Path, content: str | bytes, place: Callable[[str, Path], None]) -> None:
    raw = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            os.fchmod(handle, 0o644)  # mkstemp makes files that nobody else may read
            file.flush()
            os.fsync(file.fileno())
        place(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(
            f"{path} could not be written ({error.strerror}): free space or fix permissions, then run again"
        ) from error


def write_result(layout: Layout, result: TrialResult) -> Path:
    """Write a trial's record; returns its path."""
    path = layout.record(result.config.key)
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


def find_result(layout: Layout, key: str) -> TrialResult | None:
    """The record of a key, or None where there is none or where it is damaged (that trial must run again)."""
    path = layout.record(key)
    if not path.exists():
        return None
    try:
        return read_result(path)
    except StorageError:
        return None


def iterate_results(layout: Layout) -> Iterator[tuple[Path, TrialResult | StorageError]]:
    """Every record below `results/trials`, in key order; damaged ones as the error that says what is wrong."""
    for path in sorted(layout.trials.glob("*/*/record.json")):
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
