"""Reads files of rows as people have them: JSON, CSV, plain text, Parquet and Arrow, each value as it stands in its file."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_of
from harness.files import decoded
from harness.tasks.file import Keys
from harness.tasks.separated import SEPARATORS, csv_rows, separator_of
from harness.tasks.table import table

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

FORMATS = {"json": ("field",), "csv": ("sep", "delimiter"), "text": ("sample_by",), "parquet": (), "arrow": ()}
"""Formats of local files, each with the `dataset_kwargs` that it takes beside `data_files`."""
SUFFIXES = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Format of a file by the end of its name."""
SAMPLES = ("line", "paragraph", "document")
"""What one row of a plain text is: `datasets` has the same words."""
_UNPACKED: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
}
_OTHERS = {
    b"version https://git-lfs.github.com": "a Git LFS pointer, not the data: run `git lfs pull`",
    b"<": "a web page or XML: download the data themselves",
    b"pk\x03\x04": "an archive or a workbook: unpack it, or save it as CSV",
    b"par1": "a Parquet file: set dataset_path: parquet",
    b"arrow1": "an Arrow file: set dataset_path: arrow",
}
"""What a file is that begins so, in small letters, where another format was expected."""


def read_files(paths: Sequence[Path], kind: str, options: Keys) -> Dataset:
    """The rows of some files, one after the other.

    Args:
        paths: The files, perhaps compressed.
        kind: One of `FORMATS`.
        options: Of `dataset_kwargs`.

    Raises:
        SpecError: For a file that is empty, cut off, something else, or does not fit the others.
    """
    stats = [path.stat() for path in paths]
    stamps = tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in zip(paths, stats, strict=True))
    return _read_files(stamps, kind, json.dumps(options, sort_keys=True, default=str))


def reading_notes(paths: Sequence[Path], kind: str, options: Keys) -> tuple[str, ...]:
    """What was found out of how files are to be read, and what the task file may say instead; as `read_files` reads them."""
    notes = []
    for path in paths:
        if kind == "csv" and not {"sep", "delimiter"} & set(options):
            separator = separator_of(path, _text(path, kind), options)
            notes += [f"the fields of {path.name} stand between {SEPARATORS[separator]}"] if separator != "," else []
        if kind == "text" and "sample_by" not in options:
            notes.append(f"each {sample_by(path, _text(path, kind), options)} of {path.name} is a row")
    return tuple(notes)


@lru_cache(maxsize=16)
def _read_files(stamps: tuple[tuple[Path, int, int], ...], kind: str, options: str) -> Dataset:
    given: Keys = json.loads(options)
    if kind in ("parquet", "arrow"):
        return _joined([(path, _arrow_table(path, kind)) for path, _, _ in stamps])
    read = {"json": _json_rows, "csv": csv_rows, "text": _text_rows}[kind]
    return table([(path, read(path, _text(path, kind), given)) for path, _, _ in stamps])


def _text(path: Path, kind: str) -> str:
    raw = _bytes(path, kind)
    text = decoded(raw, path)
    if not text.strip():
        raise SpecError(f"{path} must hold rows, but is empty: check the file")
    return text


def _bytes(path: Path, kind: str) -> bytes:
    """A file's content, unpacked.

    Raises:
        SpecError: When it is cut off, or something else than rows.
    """
    raw = path.read_bytes()
    unpack = next((unpack for mark, unpack in _UNPACKED.items() if raw.startswith(mark)), None)
    try:
        raw = unpack(raw) if unpack else raw
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise SpecError(f"{path} must be a whole compressed file, but is cut off or damaged: copy it again") from error
    start = raw[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    other = next((other for mark, other in _OTHERS.items() if start.startswith(mark)), None)
    if other and not (kind == "text" and start.startswith(b"<")):  # texts may be of any kind
        raise SpecError(f"{path} must hold rows as {kind}, but is {other}")
    return raw


def _json_rows(path: Path, text: str, options: Keys) -> list[Keys]:
    """Rows of JSON lines, of one array, or of an array under a key."""
    key = options.get("field")
    decoder = json.JSONDecoder(object_pairs_hook=_each_key_once, parse_int=_whole)
    if not key and not text.lstrip().startswith("["):
        # Not `splitlines`, which also breaks at separators that may stand inside a JSON text, such as U+2028.
        lines = [(f"line {number}", line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [
            (where, _decoded_json(decoder, line, f"{path}, {where}", "one JSON object per line"))
            for where, line in lines
        ]
    else:
        content = _decoded_json(decoder, text.strip(), str(path), "a JSON array of rows")
        if key:
            known = list(content) if isinstance(content, dict) else []
            if key not in known:
                raise SpecError(f"{path}: " + one_of("key in dataset_kwargs.field", str(key), known))
            content = content[key]
        listed = content if isinstance(content, list) else [content]
        rows = [(f"row {number}", row) for number, row in enumerate(listed, 1)]
    for where, row in rows:
        if not isinstance(row, dict):
            raise SpecError(f"{path} must hold one JSON object per row, but {where} is {str(row)[:60]!r}: correct it")
    return [row for _, row in rows]


def _decoded_json(decoder: json.JSONDecoder, text: str, where: str, rule: str) -> Any:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise SpecError(f"{where} must hold {rule}, but does not ({error.msg} at {place}): correct it") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{where} must hold {rule}, but does not ({str(error)[:80]}): correct it") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> Keys:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return made


def _whole(digits: str) -> int | str:
    """A whole number; longer than Python reads, the text that it is."""
    return int(digits) if len(digits) < sys.get_int_max_str_digits() else digits


def _text_rows(path: Path, text: str, options: Keys) -> list[Keys]:
    return [{"text": sample} for sample in samples(text, sample_by(path, text, options))]


def sample_by(path: Path, text: str, options: Keys) -> str:
    """What one row of a text is: as stated, else a paragraph where blank lines stand between texts, else a line.

    Raises:
        SpecError: When something else is stated.
    """
    stated = options.get("sample_by")
    if stated is None:
        return "paragraph" if any(not line.strip() for line in text.strip().split("\n")) else "line"
    if stated not in SAMPLES:
        raise SpecError(f"{path}: " + one_of("dataset_kwargs.sample_by", str(stated), list(SAMPLES)))
    return str(stated)


def samples(text: str, by: str) -> list[str]:
    """The lines, paragraphs or the whole of a text, apart from white space around them."""
    text = text.replace("\r\n", "\n")
    if by == "document":
        return [text.strip()]
    if by == "line":
        return [line.strip() for line in text.split("\n") if line.strip()]
    blank = "\n".join(line if line.strip() else "" for line in text.split("\n"))
    return [part.strip() for part in blank.split("\n\n") if part.strip()]


def _arrow_table(path: Path, kind: str) -> pa.Table:
    """The table of a Parquet file or of an Arrow file or stream."""
    import pyarrow as pa
    import pyarrow.parquet

    raw = path.read_bytes()
    try:
        if kind == "parquet":
            # `Dataset.from_parquet` would write a copy into the user's cache.
            return pa.parquet.ParquetFile(pa.BufferReader(raw)).read()
        is_file = raw.startswith(b"ARROW1")
        return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.BufferReader(raw)).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        if not raw:
            raise SpecError(f"{path} must hold rows, but is empty: check the file") from error
        begins = raw.startswith({"parquet": b"PAR1", "arrow": b"ARROW1"}[kind])
        if not begins:
            _bytes(path, kind)  # says what else it is
        # An Arrow stream begins with the length of its first part.
        cut = (
            "is cut off or damaged: copy it again"
            if begins or kind == "arrow"
            else "is something else: correct dataset_path"
        )
        raise SpecError(f"{path} must be a whole {kind} file, but {cut}") from error


def _joined(tables: Sequence[tuple[Path, pa.Table]]) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    for path, found in tables:
        if twice := sorted({name for name in found.column_names if found.column_names.count(name) > 1}):
            raise SpecError(f"{path} must name each column once, but names {twice[0]!r} more often: rename one")
    try:
        return concatenate_datasets([Dataset(_plain(found)) for _, found in tables])
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:  # pyarrow's errors are ValueErrors
        names = ", ".join(path.name for path, _ in tables)
        raise SpecError(
            f"{names} must hold columns of one kind, but do not ({' '.join(str(error).split())[:120]}): convert them"
        ) from error


def _plain(found: pa.Table) -> pa.Table:
    """A table without dictionaries of values, such as pandas writes for categories."""
    import pyarrow as pa

    for index, column in enumerate(found.schema):
        if pa.types.is_dictionary(column.type):
            values = found.column(index).cast(column.type.value_type)
            found = found.set_column(index, column.name, values)
    return found
