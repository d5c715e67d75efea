"""JSON files below a folder, for the sources that are made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.files import parse_json


def json_files(path: Path, pattern: str = "*.json") -> Iterator[Path]:
    """A JSON file itself, or those below a folder, by name.

    Args:
        path: An existing file or folder.
        pattern: Of the names that count below a folder.
    """
    if path.is_dir():
        yield from sorted(path.rglob(pattern))
    elif path.suffix == ".json":
        yield path


def json_object(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where that is no JSON object, since anything may lie in such a folder.

    Args:
        path: The file.
    """
    try:
        data = parse_json(path.read_bytes())
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
