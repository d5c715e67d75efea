"""Where a task's rows lie: local files, a dataset of the Hugging Face hub, or a function that makes them.

Local files are read straight into memory, so nothing is written beside them or into the user's caches.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError, one_of
from harness.files import expand, parse_json, read_text
from harness.models.hub import cache, commit_of, file_of
from harness.tasks.code import repeatable
from harness.tasks.definition import Definition
from harness.tasks.file import Keys, Yaml, file_sha256
from harness.tasks.reading import FORMATS, read_files, reading_notes
from harness.tasks.separated import as_pandas_reads
from harness.tasks.table import is_exact

if TYPE_CHECKING:
    from datasets import Dataset

_ON_HUB = re.compile(r"hf://datasets/(?P<dataset>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<path>.+)")
"""A file of a dataset on the hub, as `datasets` names it (a revision with a slash is written with %2F, and is not read here)."""
_VALID = f"{', '.join(FORMATS)}, a folder that datasets' save_to_disk wrote, or a hub dataset owner/name"


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

    def notes(self) -> tuple[str, ...]:
        """What a reader must know of how the rows are read."""
        return ()


@dataclass(frozen=True)
class LocalFiles(Source):
    """Files of one of `reading.FORMATS`."""

    format: str
    files: Mapping[str, tuple[Path, ...]]
    options: Keys = field(default_factory=dict)

    def identity(self) -> object:
        """Content of the files, by split; and whether their cells are other than they were read before they were exact."""
        hashes = {split: [file_sha256(path) for path in paths] for split, paths in self.files.items()}
        identity = [self.format, dict(self.options), hashes]
        return identity if all(map(self._as_before, self.files)) else [*identity, "exact"]

    def _as_before(self, split: str) -> bool:
        """Whether a split's cells are what pandas or Arrow made of them, so that records of it stay what they are."""
        try:
            rows = self.load(split)
        except SpecError:  # nothing was trained on what cannot be read
            return True
        return as_pandas_reads(rows, self.files[split], self.options) if self.format == "csv" else is_exact(rows)

    def load(self, split: str) -> Dataset:
        """Read the files of a split, one after the other."""
        if split not in self.files:
            raise SpecError(one_of("split of dataset_kwargs.data_files", split, list(self.files)))
        return read_files(self.files[split], self.format, self.options)

    def notes(self) -> tuple[str, ...]:
        """What was found out of separators and of where a text ends."""
        files = [path for paths in self.files.values() for path in paths]
        return reading_notes(tuple(dict.fromkeys(files)), self.format, self.options)


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
class NoRows(Source):
    """Of a group, whose tasks have their own."""

    group: str

    def identity(self) -> object:
        """The group's name."""
        return self.group

    def load(self, split: str) -> Dataset:
        """Refused."""
        raise SpecError(f"{self.group} must be one task to have rows of its own, but is a group: name one of its tasks")


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
        with repeatable():
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
        raise SpecError(f"{where}: dataset_path must be {_VALID}, but got {path!r}: set it")
    if path not in FORMATS:
        saved = folder / expand(path, where)
        if saved.is_dir():
            if options:
                raise SpecError(f"{where}: dataset_kwargs must be left out for a folder, but is {options}: remove it")
            return LocalFiles("arrow", saved_files(saved, where))
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


def saved_files(folder: Path, where: str) -> dict[str, tuple[Path, ...]]:
    """The Arrow files of a folder that datasets' `save_to_disk` wrote, by split; all of a single table are `train`.

    Args:
        folder: The folder.
        where: Prefix of error messages.

    Raises:
        SpecError: When it is no such folder.
    """
    several = folder / "dataset_dict.json"
    try:
        splits = parse_json(read_text(several))["splits"] if several.is_file() else []
        places = {str(split): folder / split for split in splits} or {"train": folder}
        states = {split: parse_json(read_text(place / "state.json")) for split, place in places.items()}
        return {
            split: tuple(places[split] / entry["filename"] for entry in state["_data_files"])
            for split, state in states.items()
        }
    except (SpecError, ValueError, LookupError, TypeError) as error:
        raise SpecError(
            f"{where}: a folder in dataset_path must be what datasets' save_to_disk wrote, but {folder} is not: name its files in "
            "dataset_kwargs.data_files, with dataset_path json, csv, parquet, arrow or text"
        ) from error


def _paths(named: Yaml, folder: Path, where: str) -> tuple[Path, ...]:
    names = [expand(str(name), where) for name in (named if isinstance(named, list) else [named])]
    paths = tuple(_hub_file(found, where) if (found := _ON_HUB.fullmatch(name)) else folder / name for name in names)
    for path in paths:
        if not path.is_file():
            raise SpecError(
                f"{where}: the data file {path} must exist, but does not: correct dataset_kwargs.data_files (paths are "
                "relative to the task file)"
            )
    return paths


def _hub_file(found: re.Match[str], where: str) -> Path:
    """The copy in the hub's cache of a file that `hf://datasets/owner/name@revision/path` names."""
    commit = _commit(found["dataset"], found["revision"], where)
    try:
        return file_of(found["dataset"], found["path"], commit)
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{where}: the data file {found[0]} must be in the hub's cache or reachable, but is not ({type(error).__name__}): "
            "connect once, or correct dataset_kwargs.data_files"
        ) from error


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _commit(path: str, revision: str | None, where: str) -> str:
    try:
        return commit_of("dataset", path, revision)
    except (OSError, ValueError) as error:
        if "/" not in path and get_close_matches(path, FORMATS):
            raise SpecError(
                f"{where}: " + one_of("dataset_path", path, [*FORMATS, "a folder", "owner/name"])
            ) from error
        raise SpecError(
            f"{where}: the hub dataset {path} must be in the hub's cache or reachable, but its commit is unknown "
            f"({type(error).__name__}): connect once, pin dataset_kwargs.revision to a commit that is cached, or correct "
            f"dataset_path, which may be {_VALID}"
        ) from error
