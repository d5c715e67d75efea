"""Where a task's rows lie (local files, a hub dataset, lm-eval's own generator), and which rows make up which split.

Local files are read straight into memory, so nothing is written beside them or into the user's caches. Splits that the
data does not have are made by a hash of each row's content: the same on every machine, in every order of the rows.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_of
from harness.files import expand
from harness.models.hub import cache, commit_of
from harness.tasks.file import file_sha256

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = {"json": ("field",), "csv": ("sep", "delimiter"), "parquet": ()}
"""Formats of local files, each with the `dataset_kwargs` that it takes beside `data_files`."""


class Source(ABC):
    """Where a task's rows lie."""

    @abstractmethod
    def identity(self) -> Any:
        """JSON that changes when the rows do, and holds no path of a machine."""

    @abstractmethod
    def load(self, split: str) -> Dataset:
        """The rows of one split as the data names it; `SpecError` when there is none."""


@dataclass(frozen=True)
class LocalFiles(Source):
    """JSON (lines or one array), CSV or Parquet files."""

    format: str
    files: Mapping[str, tuple[Path, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> Any:
        """Content of the files, by split."""
        hashes = {split: [file_sha256(path) for path in paths] for split, paths in self.files.items()}
        return [self.format, dict(self.options), hashes]

    def load(self, split: str) -> Dataset:
        """Read a split's files."""
        from datasets import concatenate_datasets

        if split not in self.files:
            raise SpecError(one_of("split of dataset_kwargs.data_files", split, list(self.files)))
        return concatenate_datasets([_read(path, self.format, self.options) for path in self.files[split]])


@dataclass(frozen=True)
class HubDataset(Source):
    """A dataset of the Hugging Face hub at one commit."""

    path: str
    name: str | None
    commit: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> Any:
        """Name, configuration and commit."""
        return [self.path, self.name, self.commit, dict(self.options)]

    def load(self, split: str) -> Dataset:
        """From the hub's cache when it holds the commit, else from the hub."""
        import datasets

        datasets.disable_progress_bars()
        snapshot = cache("dataset", self.path) / "snapshots" / self.commit
        # Offline, `load_dataset(path)` would take the newest prepared copy, whatever revision is asked for.
        pinned: dict[str, Any] = {"path": self.path, "revision": self.commit}
        place = {"path": str(snapshot)} if _offline() and snapshot.is_dir() else pinned
        try:
            return datasets.load_dataset(**place, name=self.name, split=split, **self.options)
        except (OSError, ValueError) as error:
            raise SpecError(
                f"the dataset {self.path} at {self.commit[:8]} must be in the hub's cache or reachable, but split "
                f"'{split}' is not ({type(error).__name__}): connect once, or use a task with local files"
            ) from error


@dataclass(frozen=True)
class Generated(Source):
    """Rows that an allowed function makes (lm-eval's `custom_dataset`)."""

    make: Callable[..., Mapping[str, Dataset]]
    options: Mapping[str, Any]
    version: str

    def identity(self) -> Any:
        """The function's name and arguments, and the version of the package that holds it."""
        return [f"{self.make.__module__}.{self.make.__qualname__}", str(dict(self.options)), self.version]

    def load(self, split: str) -> Dataset:
        """Call the function."""
        return self.make(**self.options)[split]


def locate(config: Mapping[str, Any], folder: Path, where: str) -> LocalFiles | HubDataset:
    """Where a task file's rows lie.

    Args:
        config: The task file's keys.
        folder: Of the task file; relative data files start there.
        where: Prefix of error messages.

    Raises:
        SpecError: For a missing file, an unknown option, or a hub dataset whose commit cannot be known.
    """
    path, options = config.get("dataset_path"), dict(config.get("dataset_kwargs") or {})
    if not isinstance(path, str) or not path:
        raise SpecError(f"{where}: dataset_path must be json, csv, parquet or a hub dataset, but got {path!r}: set it")
    if path not in FORMATS:
        options.pop("trust_remote_code", None)
        commit = _commit(path, options.pop("revision", None), where)
        return HubDataset(path, config.get("dataset_name"), commit, options)
    files = options.pop("data_files", None)
    for option in options:
        if option not in FORMATS[path]:
            raise SpecError(f"{where}: " + one_of("key of dataset_kwargs", option, ["data_files", *FORMATS[path]]))
    if not files:
        raise SpecError(f"{where}: dataset_kwargs.data_files must map splits to {path} files, but is empty: add it")
    by_split = files if isinstance(files, dict) else {"train": files}
    return LocalFiles(path, {str(split): _paths(named, folder, where) for split, named in by_split.items()}, options)


def _paths(named: Any, folder: Path, where: str) -> tuple[Path, ...]:
    paths = tuple(folder / expand(str(name), where) for name in (named if isinstance(named, list) else [named]))
    for path in paths:
        if not path.is_file():
            raise SpecError(
                f"{where}: the data file {path} must exist, but does not: correct dataset_kwargs.data_files (paths are "
                "relative to the task file)"
            )
    return paths


def _read(path: Path, kind: str, options: Mapping[str, Any]) -> Dataset:
    from datasets import Dataset

    try:
        if kind == "parquet":
            import pyarrow.parquet

            return Dataset(pyarrow.parquet.read_table(path))
        if kind == "csv":
            import pandas as pd

            return Dataset.from_pandas(pd.read_csv(path, **options), preserve_index=False)
        rows = _json_rows(path, options.get("field"))
        columns = dict.fromkeys(column for row in rows for column in row)
        return Dataset.from_list([{column: row.get(column) for column in columns} for row in rows])
    except (ValueError, TypeError, AttributeError) as error:  # pyarrow's and pandas' errors are ValueErrors
        raise SpecError(f"{path} must hold rows of one {kind} table, but does not ({error}): correct it") from error


def _json_rows(path: Path, key: str | None) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if key or text.lstrip().startswith("["):
        rows = json.loads(text)
        return list(rows[key] if key else rows)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise SpecError(
                    f"{path} must hold one JSON object per line, but line {number} is not: correct it"
                ) from error
    return rows


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _commit(path: str, revision: str | None, where: str) -> str:
    try:
        return commit_of("dataset", path, revision)
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{where}: the hub dataset {path} must be in the hub's cache or reachable, but its commit is unknown "
            f"({type(error).__name__}): connect once, or pin dataset_kwargs.revision to a commit that is cached"
        ) from error


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


def row_hash(row: Mapping[str, Any]) -> str:
    """SHA-256 of a row's canonical JSON."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_order(rows: Dataset) -> list[tuple[str, int]]:
    """Hash and index of every row, sorted by hash."""
    return sorted((row_hash(row), index) for index, row in enumerate(rows))


def _boundary(order: Sequence[tuple[str, int]], share: float) -> int:
    count = round(share * len(order)) if share in (0.0, 1.0) else max(1, round(share * len(order)))
    while 0 < count < len(order) and order[count][0] == order[count - 1][0]:
        count += 1
    return min(count, len(order))


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
