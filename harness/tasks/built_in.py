"""Which file of lm-eval's holds which task or group, and which tasks have a tag; as its `TaskManager` finds them.

lm-eval parses the YAML of its 14,000 files, which takes ten times as long as reading them: here only the few keys that name
things are looked at.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml

Keys = dict[str, bytes]
"""Keys of a file that name things, with what stands behind them."""
_BLOCK = re.compile(
    rb"^(?P<quote>['\"]?)(?P<key>class|group|include|tag|task)(?P=quote)[ \t]*:(?P<value>.*(?:\n(?:[ \t#-].*|[ \t\r]*(?=\n)))*)",
    re.MULTILINE,
)
"""A key at the left edge, and its value with the lines that belong to it."""
_PLAIN = re.compile(rb"[ \t]*(?P<quote>['\"]?)(?P<text>[\w.@/+-]+(?: [\w.@/+-]+)*)(?P=quote)[ \t]*(?:#.*)?\s*$")


@dataclass(frozen=True)
class Index:
    """What names mean."""

    files: Mapping[str, Path] = field(default_factory=dict)
    """Of tasks and groups, by name."""
    tags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the tasks that have a tag, sorted."""


@cache
def index() -> Index:
    """Everything that lm-eval brings; read once per process."""
    spec = importlib.util.find_spec("lm_eval")
    root = str(Path(str(spec.origin)).parent / "tasks") if spec else ""
    # Paths stay texts: to make 14,000 objects of them takes as long as to read the files.
    paths = [f"{folder}/{name}" for folder, _, names in os.walk(root) for name in names if name.endswith(".yaml")]
    files: dict[str, Path] = {}
    tags: dict[str, set[str]] = {}
    included: dict[str, Keys] = {}
    # In lm-eval's order: of two files with one name the first counts, and so does a tag before a task of its name.
    for path in sorted(paths):
        keys = _keys(path, included)
        is_group = "group" in keys and "class" not in keys
        name = _value(keys.get("group" if is_group else "task", b""))
        if not isinstance(name, str) or name in files or name in tags:
            continue
        files[name] = Path(path)
        for tag in () if is_group else _listed(keys.get("tag", b"")):
            if tag not in files:
                tags.setdefault(tag, set()).add(name)
    return Index(files, {tag: tuple(sorted(names)) for tag, names in tags.items()})


def _keys(path: str, included: dict[str, Keys]) -> Keys:
    """The keys of a file and its includes that name things, their values as YAML; those of a file that is missing are none.

    Args:
        path: Of the file.
        included: Keys of files that were included before, since hundreds include the same one; filled here.
    """
    try:
        with open(path, "rb") as file:
            own = {match["key"]: match["value"] for match in _BLOCK.finditer(file.read())}
    except OSError:
        return {}
    keys: Keys = {}
    for include in _listed(own.pop(b"include", b"")):
        other = os.path.normpath(os.path.join(os.path.dirname(path), include))
        if other not in included:
            included[other] = {}  # a file that includes itself adds nothing
            included[other] = _keys(other, included)
        keys |= included[other]
    return keys | {key.decode(): value for key, value in own.items()}


def _value(text: bytes) -> object:
    """A value; None where there is none, or it is no YAML."""
    if not text.strip():
        return None
    if plain := _PLAIN.match(text):
        return plain["text"].decode()
    try:
        return yaml.load(b"key:" + text, Loader=_Loader)["key"]
    except yaml.YAMLError:
        return None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader; what a tag makes is of no interest here."""


_Loader.add_multi_constructor("!", lambda *_: None)


def _listed(text: bytes) -> list[str]:
    value = _value(text)
    return [str(item) for item in value] if isinstance(value, list) else [] if value is None else [str(value)]
