"""Files that are whole or absent, JSON lines, YAML, `${VARIABLE}`, and times as the files hold them."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from harness.errors import SpecError, StorageError


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


def append_line(path: Path, data: Mapping[str, Any], sync: bool = True) -> None:
    """Add one line of JSON, which a kill cannot undo; what a killed writer left of its last line is cut off first.

    Args:
        path: A JSONL file with one writer.
        data: The line.
        sync: Whether it must outlive a power cut, too.

    Raises:
        StorageError: When the file system refuses; what it took of the line does not count as a line.
    """
    raw = (json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(_whole(file.read()))
            file.write(raw)  # at the end, wherever the last read was: the file is open for appending
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error}): free space or fix permissions, then run again"
        ) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; none for a missing file.

    Raises:
        StorageError: When one of them is not JSON.
    """
    if not path.exists():
        return []
    raw = path.read_bytes()
    lines = raw[: _whole(raw)].splitlines()
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise StorageError(
            f"{path} holds a line that is not JSON ({error}): restore it, or delete the folder"
        ) from error


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _whole(raw: bytes) -> int:
    """Length of the part that ends with a newline."""
    return raw.rfind(b"\n") + 1


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3.5 min, 2.1 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def read_yaml(path: Path) -> Any:
    """A YAML mapping from a file.

    Raises:
        SpecError: When it is missing, not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} must be a readable file ({error.strerror}): check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} must be valid YAML, but is not: " + " ".join(str(error).split())) from error
    if not isinstance(data, dict):
        raise SpecError(
            f"{path} must hold a mapping of keys to values, but holds {type(data).__name__}: see the examples in studies/"
        )
    return data


def expand(text: str, where: str) -> str:
    """Replace `${VARIABLE}` by the environment's value.

    Raises:
        SpecError: When a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise SpecError(
                f"{where}: the environment must set {match[1]}, but does not: export {match[1]}=... and run again"
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)
