"""Folders that are whole or absent: built under another name, sealed with the digests of their files, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.files import parse_json

DIGESTS, BUILDING = "digests.json", ".building-"


@contextmanager
def sealed(target: Path) -> Iterator[Path]:
    """An empty folder that gets its digests and its name when what is inside ends well, and is removed otherwise."""
    building = target.parent / f"{BUILDING}{os.getpid()}-{time.time_ns()}"
    building.mkdir(parents=True)
    try:
        yield building
        digests = {str(path.relative_to(building)): _digest(path, sync=True) for path in files(building)}
        (building / DIGESTS).write_text(json.dumps(digests))
        _sync(building / DIGESTS)
        if not target.exists():  # after trials were split, the same steps may be done again
            building.rename(target)
            _sync(target.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def remove_unfinished(parent: Path) -> None:
    """Remove what a process that was killed had begun to build among the folders of `parent`."""
    for path in parent.glob(f"{BUILDING}*"):
        shutil.rmtree(path, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether a folder has exactly the files that were saved, byte for byte."""
    try:
        digests = parse_json((folder / DIGESTS).read_text())
        there = {str(path.relative_to(folder)): path for path in files(folder) if path != folder / DIGESTS}
        return bool(digests) and digests == {name: _digest(path) for name, path in there.items()}
    except (OSError, ValueError):
        return False


def _digest(path: Path, sync: bool = False) -> str:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def files(folder: Path) -> list[Path]:
    """All files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
