"""Files that are whole or absent, JSON lines, YAML, `${VARIABLE}`, and times as the files hold them."""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import Composer

from harness.errors import SpecError, StorageError

LONGEST_YAML = 500_000
"""Characters of a YAML file; more would take seconds to read."""
DEEPEST_YAML = 50
"""Levels of a YAML file."""
MOST_NODES = 100_000
"""Keys and values of a YAML file, each counted as often as aliases repeat it."""


ROOM = 64 << 20
"""Bytes that are left free for records: nothing starts and no checkpoint is written on a fuller disk."""
FULL = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write beside, fsync, rename: a reader sees the old file or the whole new one, never a part.

    Raises:
        StorageError: When the file system refuses (full, read-only, no permission).
    """
    _write(path, content, os.replace)


def make_folder(folder: Path) -> None:
    """Make a folder that files can be written to, or see that it is one.

    Raises:
        StorageError: When the file system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StorageError(
            f"{folder} must be a writable folder, but is not ({error.strerror}): name another"
        ) from error


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
        # Not by mkstemp, whose files nobody else may read: who may is the umask's to say, as for every other file.
        name = f"{path.parent}/.{path.name}.{secrets.token_hex(8)}"
        with open(name, "xb") as file:
            temporary = name
            file.write(raw)
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
        return [parse_json(line) for line in lines]
    except ValueError as error:
        raise StorageError(
            f"{path} holds a line that is not JSON ({error}): restore it, or delete the folder"
        ) from error


def parse_json(text: str | bytes) -> Any:
    """What a text holds as JSON.

    Raises:
        ValueError: When it is no JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


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


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in what its byte order mark says; the mark is not part of it.

    Raises:
        SpecError: When it cannot be read, or holds something else than text.
    """
    try:
        return decoded(path.read_bytes(), path)
    except OSError as error:
        raise SpecError(f"{path} must be a readable file ({error.strerror}): check the path") from error


def decoded(raw: bytes, path: Path) -> str:
    """The text that a file's bytes are, see `read_text`.

    Raises:
        SpecError: When they are no text.
    """
    # UTF-32 first: its mark begins with that of UTF-16.
    marks = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
    encoding = next((name for mark, name in marks.items() if raw.startswith(mark)), "utf-8-sig")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"{path} must be text in UTF-8, but line {line} is not: save it as UTF-8") from error


def read_yaml(path: Path, tags: Mapping[str, Callable[[str], Any]] | None = None, loosely: bool = False) -> Any:
    """The mapping that a YAML file holds: every study, task and other YAML file is read here.

    Values are those of YAML 1.2 (`1e-3` is a number, dates are texts). Refused are keys that stand twice, values that
    YAML 1.1 and 1.2 read differently without the other being absurd (`007`; `no` as the value of a key, while `no` in a
    list is a text), and files that grow when read: deep nesting, aliases of aliases.

    Args:
        path: The file.
        tags: What tags beside YAML's own mean: a function of the tagged text.
        loosely: Whether it is read as PyYAML reads it, with YAML 1.1's values: for files of others that are written so.

    Raises:
        SpecError: When it is missing, no such YAML, or not a mapping.
    """
    text = read_text(path)
    if len(text) > LONGEST_YAML:
        raise SpecError(
            f"{path} must be YAML of at most {LONGEST_YAML:,} characters, but has {len(text):,}: shorten it"
        )
    try:
        data = (_Loader if loosely else _Strict)(text, tags or {}).get_single_data()
    except (
        yaml.YAMLError,
        LookupError,
        ValueError,
    ) as error:  # a tag of YAML's before a value of another kind is no YAMLError
        raise SpecError(f"{path} must be valid YAML, but {_problem(error, text)}: correct it") from error
    if not isinstance(data, dict):
        raise SpecError(
            f"{path} must hold a mapping of keys to values, but holds {type(data).__name__}: see the examples in studies/"
        )
    return data


class _Loader(Composer, yaml.CSafeLoader):
    """YAML as PyYAML reads it, which is YAML 1.1, within limits of depth and size."""

    def __init__(self, text: str, tags: Mapping[str, Callable[[str], Any]]) -> None:
        yaml.CSafeLoader.__init__(self, text)
        Composer.__init__(self)  # in Python: libyaml's own composer follows a file to any depth
        self.tags = tags
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node with all that is in it."""
        self.depth += 1
        if self.depth > DEEPEST_YAML:
            raise _Refused(f"more than {DEEPEST_YAML} levels stand in one another", parent)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_document(self) -> yaml.Node | None:
        """The node of the whole file."""
        node = super().compose_document()
        if node and _size(node, {}) > MOST_NODES:
            raise _Refused(f"aliases repeat its keys and values without end, or to more than {MOST_NODES:,}", node)
        return node

    def tagged(self, node: yaml.Node) -> Any:
        """What the value with a tag of ours means."""
        if node.tag not in self.tags or not isinstance(node, yaml.ScalarNode):
            raise _Refused(f"the tag {node.tag} has no meaning here", node)
        return self.tags[node.tag](node.value)

    yaml_constructors: ClassVar[dict[str | None, Any]] = {**yaml.SafeLoader.yaml_constructors, None: tagged}


_CORE = "tag:yaml.org,2002:"
_INT, _FLOAT, _FLAG, _ZEROS = f"{_CORE}int", f"{_CORE}float", "!flag", "!zeros"


class _Strict(_Loader):
    """YAML 1.2's core schema, and what it reads otherwise than YAML 1.1 is refused where somebody may mean the other."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping whose keys stand once, and whose values mean one thing."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise _Refused(f"the key {name} stands on line {lines[name]} already", key)
            lines[name] = line
            if value.tag == _FLAG:
                raise _Refused(
                    f"{value.value} may be a text, true or false: put quotes around a text, or write true or false",
                    value,
                )
        return node

    def number(self, node: yaml.ScalarNode) -> float:
        """A number of any notation that Python has."""
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        try:
            if len(text) > 4300:  # more than Python prints
                raise ValueError
            return float(text.replace(".inf", "inf").replace(".nan", "nan")) if node.tag == _FLOAT else int(text, 0)
        except ValueError as error:
            raise _Refused(f"{text[:20]} must be a number of at most 4,300 digits", node) from error

    def zeros(self, node: yaml.ScalarNode) -> float:
        """A number with zeros before it, or a text."""
        raise _Refused(f"{node.value} may be a number or a text: leave out the zeros, or put quotes around it", node)

    # Nothing else: a set or a time would be no JSON.
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        None: _Loader.tagged,
        _FLAG: yaml.SafeLoader.construct_yaml_str,
        _ZEROS: zeros,
        _INT: number,
        _FLOAT: number,
        **{
            f"{_CORE}{kind}": yaml.SafeLoader.yaml_constructors[f"{_CORE}{kind}"]
            for kind in ("null", "bool", "str", "seq", "map")
        },
    }


for _tag, _pattern, _first in (
    (f"{_CORE}bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    (f"{_CORE}null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    (f"{_CORE}merge", "<<", "<"),
    (_FLAG, "(?i:yes|no|on|off)", "yYnNoO"),
    (_INT, "[-+]?(0|[1-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+|0b[01]+)", "-+0123456789"),
    (_ZEROS, "[-+]?0[0-9_]+", "-+0"),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Strict.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


class _Refused(yaml.MarkedYAMLError):
    """YAML that the standard allows, and the harness does not."""

    def __init__(self, problem: str, node: yaml.Node | None) -> None:
        super().__init__(problem=problem, problem_mark=node.start_mark if node else None)


def _size(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many nodes are in a node, each as often as aliases repeat it; more than allowed where it is inside itself."""
    if node not in known:
        known[node] = MOST_NODES + 1
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        inner = [item for part in parts for item in (part if isinstance(part, tuple) else [part])]
        known[node] = 1 + sum(_size(item, known) for item in inner)
    return known[node]


def _problem(error: Exception, text: str) -> str:
    """Where YAML is wrong, and what is."""
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        line, column, problem = mark.line + 1, mark.column + 1, str(error.problem or error.context)
    else:
        at = error.start if isinstance(error, UnicodeEncodeError) else int(getattr(error, "position", 0))
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        problem = str(getattr(error, "reason", error))
    return f"line {line}, column {column}: " + " ".join(problem.split()).removeprefix("but ")


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
