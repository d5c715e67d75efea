"""Where a task's rows lie: local files, a dataset of the Hugging Face hub, or a function that makes them.

Local files are read straight into memory, so nothing is written beside them or into the user's caches.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError, one_of
from harness.files import expand
from harness.models.hub import cache, commit_of
from harness.tasks.definition import Definition
from harness.tasks.file import Keys, Yaml, file_sha256

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS = {"json": ("field",), "csv": ("sep", "delimiter"), "parquet": ()}
"""Formats of local files, each with the `dataset_kwargs` that it takes beside `data_files`."""


class Source(ABC):
    """Where a task's rows lie."""

    @abstractmethod
    def identity(self) -> object:
        """What tells these rows from others, as JSON: it changes when they do, and holds no path of a machine."""

    @abstractmethod
    def load(self, split: str) -> Dataset:
        """The rows of one split, by the name that the data gives it.

        Raises:
            SpecError: When there is no such split, or it cannot be read.
        """


@dataclass(frozen=True)
class LocalFiles(Source):
    """JSON (lines or one array), CSV or Parquet files."""

    format: str
    files: Mapping[str, tuple[Path, ...]]
    options: Keys = field(default_factory=dict)

    def identity(self) -> object:
        """Content of the files, by split."""
        hashes = {split: [file_sha256(path) for path in paths] for split, paths in self.files.items()}
        return [self.format, dict(self.options), hashes]

    def load(self, split: str) -> Dataset:
        """Read the files of a split, one after the other."""
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
    options: Keys = field(default_factory=dict)

    def identity(self) -> object:
        """The dataset's name, configuration, commit and options."""
        return [self.path, self.name, self.commit, dict(self.options)]

    def load(self, split: str) -> Dataset:
        """From the hub's cache when it holds the commit, else from the hub."""
        import datasets

        datasets.disable_progress_bars()
        snapshot = cache("dataset", self.path) / "snapshots" / self.commit
        # Offline, `load_dataset(path)` takes the newest prepared copy, whatever revision is asked for.
        pinned: Keys = {"path": self.path, "revision": self.commit}
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
    options: Keys
    version: str

    def identity(self) -> object:
        """The function's name and arguments, and the version of the package that holds it."""
        return [f"{self.make.__module__}.{self.make.__qualname__}", str(dict(self.options)), self.version]

    def load(self, split: str) -> Dataset:
        """Call the function, and take one of the splits that it returns."""
        return self.make(**self.options)[split]


def locate(definition: Definition, folder: Path, where: str) -> LocalFiles | HubDataset:
    """Where a task file's rows lie.

    Args:
        definition: The task file's keys.
        folder: Of the task file; relative data files start there.
        where: Prefix of error messages.

    Raises:
        SpecError: For a missing file, an unknown option, or a hub dataset whose commit cannot be known.
    """
    path, options = definition.dataset_path, dict(definition.dataset_kwargs)
    if not isinstance(path, str) or not path:
        raise SpecError(f"{where}: dataset_path must be json, csv, parquet or a hub dataset, but got {path!r}: set it")
    if path not in FORMATS:
        # Older task files have it, but no code of a dataset runs here.
        options.pop("trust_remote_code", None)
        commit = _commit(path, options.pop("revision", None), where)
        return HubDataset(path, definition.dataset_name, commit, options)
    files = options.pop("data_files", None)
    for option in options:
        if option not in FORMATS[path]:
            raise SpecError(f"{where}: " + one_of("key of dataset_kwargs", option, ["data_files", *FORMATS[path]]))
    if not files:
        raise SpecError(f"{where}: dataset_kwargs.data_files must map splits to {path} files, but is empty: add it")
    by_split = files if isinstance(files, dict) else {"train": files}
    return LocalFiles(path, {str(split): _paths(named, folder, where) for split, named in by_split.items()}, options)


def _paths(named: Yaml, folder: Path, where: str) -> tuple[Path, ...]:
    paths = tuple(folder / expand(str(name), where) for name in (named if isinstance(named, list) else [named]))
    for path in paths:
        if not path.is_file():
            raise SpecError(
                f"{where}: the data file {path} must exist, but does not: correct dataset_kwargs.data_files (paths are "
                "relative to the task file)"
            )
    return paths


def _read(path: Path, kind: str, options: Keys) -> Dataset:
    from datasets import Dataset

    try:
        if kind == "parquet":
            import pyarrow.parquet

            # `Dataset.from_parquet` would write a copy into the user's cache.
            return Dataset(pyarrow.parquet.read_table(path))
        if kind == "csv":
            import pandas as pd

            return Dataset.from_pandas(pd.read_csv(path, **options), preserve_index=False)
        rows = _json_rows(path, options.get("field"))
        # `from_list` takes its columns from the first row only.
        columns = dict.fromkeys(column for row in rows for column in row)
        return Dataset.from_list([{column: row.get(column) for column in columns} for row in rows])
    except (ValueError, TypeError, AttributeError) as error:  # pyarrow's and pandas' errors are ValueErrors
        raise SpecError(f"{path} must hold rows of one {kind} table, but does not ({error}): correct it") from error


def _json_rows(path: Path, key: str | None) -> list[Keys]:
    text = path.read_text(encoding="utf-8")
    if key or text.lstrip().startswith("["):
        rows = json.loads(text)
        return list(rows[key] if key else rows)
    rows = []
    # Not `splitlines`, which also breaks at separators that may stand inside a JSON text, such as U+2028.
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
