"""What a base model knows already: a file or saved folder of texts, or a task's rows; it is replayed against forgetting."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError
from harness.records.codec import fingerprint
from harness.records.trial import ModelRef
from harness.tasks.data import LocalFiles, saved_files
from harness.tasks.reading import SUFFIXES
from harness.tasks.table import docs
from harness.tasks.task import find_task
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from harness.models.base_model import BaseModel

COMPRESSED = (".gz", ".bz2", ".xz")


def corpus_path(corpus: str) -> Path | None:
    """The file or folder that a corpus is; None where its name is that of a task."""
    path = Path(corpus)
    is_saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    return path if path.is_file() or is_saved or _kind(path) else None


def with_corpus(model: BaseModel, folders: tuple[Path, ...]) -> ModelRef:
    """A base model's reference with the fingerprint of its corpus: replayed rows change what is learned.

    Args:
        model: The base model.
        folders: Where a corpus that is a task is looked for, see `task_folders`.

    Raises:
        SpecError: When the corpus cannot be read.
    """
    if model.corpus is None:
        return model.ref
    if (path := corpus_path(model.corpus)) is None:
        return replace(model.ref, corpus=find_task(model.corpus, folders).ref.fingerprint)
    text_rows(path)
    if _kind(path) in ("json", None) and path.is_file():
        return replace(model.ref, corpus=hashlib.sha256(path.read_bytes()).hexdigest()[:20])
    return replace(model.ref, corpus=fingerprint(_source(path).identity()))


def corpus_notes(model: BaseModel) -> tuple[str, ...]:
    """What a reader must know of how a base model's corpus is read."""
    path = corpus_path(model.corpus) if model.corpus else None
    return _source(path).notes() if path else ()


def text_rows(path: Path) -> list[Row]:
    """The texts of a corpus, as rows with an empty prompt: the column `text` of a file of rows, or the parts of a plain text.

    Args:
        path: A file of one of `reading.FORMATS`, told by the end of its name (JSON lines for any other), perhaps compressed;
            or a folder that datasets' `save_to_disk` wrote.

    Raises:
        SpecError: For a missing file, one that cannot be read, or a row without text.
    """
    source, rows = _source(path), []
    for split in source.files:
        for number, row in enumerate(docs(source.load(split)), 1):
            text = row.get("text")
            if not isinstance(text, str) or not text:
                raise SpecError(
                    f"{path} must have a text in the column `text` of every row, but row {number} has none: add it"
                )
            rows.append(Row(completion=text))
    if not rows:
        raise SpecError(f"{path} must hold texts, but is empty: write one JSON object with `text` per line")
    return rows


def _kind(path: Path) -> str | None:
    """The format of a file; None where its name does not say."""
    kind = SUFFIXES.get(Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix)
    if kind == "text" and path.is_file():
        with path.open("rb") as file:
            return (
                "json" if file.read(200).lstrip(b"\xef\xbb\xbf \r\n").startswith(b'{"') else kind
            )  # whatever its name
    return kind


def _source(path: Path) -> LocalFiles:
    if path.is_dir():
        return LocalFiles("arrow", saved_files(path, f"corpus {path}"))
    if not path.is_file():
        raise SpecError(f"{path} must be a readable corpus, but there is no such file: check the path")
    return LocalFiles(_kind(path) or "json", {"train": (path,)})
