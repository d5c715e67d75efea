"""Reads a task's YAML file and what it includes, without running the code that it names.

The file is lm-eval's task format. lm-eval imports code while it parses a file. Here a `!function` tag becomes a
`CodeReference`, so that a task file from elsewhere can be read, hashed and refused before any of its code runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from harness.errors import SpecError
from harness.files import read_yaml

Yaml = Any
"""What a YAML file can hold, functions that `!function` names among it."""
Keys = dict[str, Yaml]
"""Keys and values of a task file, or of a part of it."""
ALLOW_CODE = "HARNESS_ALLOW_CODE"
"""Environment variable: SHA-256 of every file that may run code on a task's behalf, separated by commas."""


@dataclass(frozen=True)
class CodeReference:
    """What a `!function` tag names; nothing is imported."""

    name: str
    folder: Path
    """Of the YAML file that holds the tag; modules are looked for there first."""

    @property
    def module(self) -> Path | None:
        """The Python file beside the task file, or None where an installed module is meant."""
        path = self.folder / (self.name.rpartition(".")[0].replace(".", "/") + ".py")
        return path if path.is_file() else None


@dataclass(frozen=True)
class TaskFile:
    """A task's YAML with its includes merged; local keys win."""

    path: Path
    config: Keys
    code: tuple[Path, ...]
    """Files that the user must allow: YAML files with tags or `unsafe_code`, and the Python files that tags name."""


def read_task_file(path: Path) -> TaskFile:
    """Read a task file and what it includes.

    Raises:
        SpecError: For a file that is missing, not YAML, not a mapping, or that includes itself.
    """
    code: dict[Path, None] = {}
    config = _merged(path, code, ())
    return TaskFile(path, config, tuple(code))


def task_keys() -> tuple[str, ...]:
    """Every key that a task file may have."""
    from lm_eval.config.task import TaskConfig

    return (*(known.name for known in fields(TaskConfig)), "include")


def _merged(path: Path, code: dict[Path, None], seen: tuple[Path, ...]) -> Keys:
    if path.resolve() in seen:
        raise SpecError(f"{path} must not include itself, but does, by way of {seen[-1]}: remove one include")
    own = _load(path)
    references = _references(own)
    if references or own.get("unsafe_code"):
        code[path] = None
        code.update({ref.module: None for ref in references if ref.module})
    includes = own.pop("include", [])
    config: Keys = {}
    for include in includes if isinstance(includes, list) else [includes]:
        config |= _merged(path.parent / str(include), code, (*seen, path.resolve()))
    # As in lm-eval, a file's own keys replace those of its includes, and a later include those of an earlier.
    return config | own


def _load(path: Path) -> Keys:
    tags = {"!function": lambda name: CodeReference(name, path.parent)}
    # lm-eval's own files are YAML 1.1: `doc_to_choice: [no, yes]` means False and True there, and so it scores them.
    keys: Keys = read_yaml(path, tags, loosely=path.resolve().is_relative_to(lm_eval_folder()))
    return keys


@cache
def lm_eval_folder() -> Path:
    """lm-eval's folder."""
    spec = importlib.util.find_spec("lm_eval")
    return Path(str(spec and spec.origin)).resolve().parent


def _references(value: Yaml) -> list[CodeReference]:
    if isinstance(value, CodeReference):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [reference for item in inner for reference in _references(item)]


def require_permission(file: TaskFile) -> None:
    """Raise `SpecError` unless the user has allowed every file that would bring code in, by its hash."""
    allowed = set(os.environ.get(ALLOW_CODE, "").replace(" ", "").split(","))
    hashes = {path: file_sha256(path) for path in file.code}
    if set(hashes.values()) - allowed:
        files = ", ".join(f"{path.name} ({digest})" for path, digest in hashes.items())
        raise SpecError(
            f"{file.path} must not run code unless you allow it, but !function or unsafe_code bring in {files}: "
            f"read the files, then export {ALLOW_CODE}={','.join(hashes.values())} and run again"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content. A process hashes a file again only when its time or size has changed.

    Raises:
        SpecError: When the file cannot be read.
    """
    try:
        stat = path.stat()
        return _sha256(path, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise SpecError(f"{path} must be a readable file ({error.strerror}): check the path") from error


@lru_cache(maxsize=1024)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Yaml) -> Yaml:
    """A YAML value as JSON; a function is told by its name and the hash of its file."""
    if isinstance(value, CodeReference):
        return {"function": value.name, "sha256": file_sha256(value.module) if value.module else None}
    if isinstance(value, dict):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
