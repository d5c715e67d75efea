"""Which trials a study has, and why: `members.jsonl`, one line for each, written before the trial is started."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import StorageError
from harness.layout import Layout
from harness.records import to_json
from harness.space import Scalar
from harness.spec import Role


@dataclass(frozen=True)
class Member:
    """One trial of a study. A trial that a scheduler took over several rungs has one line, key and record for each."""

    key: str
    role: Role
    family: str
    """Name in the study; `base` for the base model itself."""
    task: str
    base_model: str
    repetition: int
    """Which fresh seed, counting from 0; 0 outside the confirm step."""
    number: int
    """Of the trial in its cell, counting from 0; the same at every rung."""
    params: Mapping[str, Scalar]
    """The searched values."""
    reused: bool
    """Whether the record existed before this study asked for it."""
    asked_at: str
    """UTC, ISO 8601."""
    fidelity: float = 1.0
    """Where it stops. A number without a line at a higher fidelity was not promoted; its record is complete as it is."""


def members_path(layout: Layout, study: str) -> Path:
    """Where a study's members stand."""
    return layout.study(study) / "members.jsonl"


def read_members(layout: Layout, study: str) -> list[Member]:
    """A study's trials in the order they were asked for; empty for an unknown study.

    Raises:
        StorageError: When a line other than an unfinished last one is damaged.
    """
    return [Member(**data) for data in read_lines(members_path(layout, study))]


def append_member(layout: Layout, study: str, member: Member) -> None:
    """Add a line. A power cut may lose the last ones: the next driver asks for the same trials and finds their records."""
    append_line(members_path(layout, study), to_json(member), sync=False)


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
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                file.truncate((file.seek(0), _whole(file.read()))[1])
            file.write(raw)
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
