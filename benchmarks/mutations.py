"""Ways in which a file can be wrong: bytes that changed, and values that are not what they should be."""

from __future__ import annotations

import codecs
import copy
import io
import json
import math
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Tree = Any
"""What YAML or JSON holds."""
Place = tuple[Any, ...]
"""Keys and numbers that lead to a value of a tree."""

DEEP, LONG = 20_000, 100_000
NUMBERS = [
    "1e999",
    "-1",
    "0",
    "1" + "0" * 30,
    "1" + "0" * 5000,
    "NaN",
    ".inf",
    "1e-3",
    "0x1F",
    "1_000",
    "007",
    "1:30",
    "-0.0",
]
TEXTS = [
    "",
    " ",
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "..",
    "a/b",
    "-rf",
    "${HOME}",
    "${NOT_SET_ANYWHERE}",
    "$(touch ran)",
    "{{ ''.__class__.__mro__ }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{{",
    "<script>alert(1)</script>",
    "'; DROP TABLE trials; --",
    "日本語",
    "e\u0301\u202e\u200b",
    "\U0001f600",
    "\x00",
    "\x1b[31m",
    "\ud800",
    "%s%n",
    "null",
    "None",
    "true",
    "no",
    "1e-3",
    "[1, 2]",
    "a\nb",
    "con:",
    "x" * LONG,
    "x" * 300,
    "hf://a/b",
    "evil.py",
    "!function evil.f",
]
VALUES: list[Tree] = [
    None, True, False, 0, 1, -1, 2, 7, 1.5, -0.0, 1e-300, 1e300, math.nan, math.inf, -math.inf, 10**30, -(10**30), 2**31, 2**63,
    2**64, 10**400, [], {}, [None], [[]], [1, 2, 3], ["a"], {"a": 1}, {"": None}, {"low": 1, "high": 0}, {"choices": []},
    {"low": 1e-5, "high": 1e-1, "log": True},
]  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
TAGS = [
    "!!python/object/apply:os.system [touch ran]",
    "!!python/name:evil.f",
    "!function evil.f",
    "!!binary x",
    "!unknown x",
    "&a [*a]",
]


def changed_bytes(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A file's content with one accident, and the accident's name."""
    name = rng.choice(sorted(_BYTES))
    return _BYTES[name](raw, rng), name


def changed_text(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The same for files that people write: a number or a word is another, or YAML's own traps stand in it."""
    name = rng.choice(sorted(_TEXT))
    return _TEXT[name](raw.decode(errors="replace"), rng).encode(errors="surrogatepass"), name


def changed_tree(tree: Tree, rng: random.Random) -> tuple[Tree, str]:
    """A tree with one value or key that is not what it should be, and what was done to it."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return rng.choice(VALUES), "another value"
    *way, last = rng.choice(places)
    parent = tree
    for step in way:
        parent = parent[step]
    name = rng.choice(sorted(_TREE))
    try:
        _TREE[name](parent, last, rng)
    except (TypeError, ValueError, IndexError, AttributeError, OverflowError):  # suits no value of this kind
        return changed_tree(tree, rng)
    return tree, f"{name} at {'.'.join(map(str, (*way, last)))}"


def _places(tree: Tree) -> Iterator[Place]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (key,)
        yield from ((key, *rest) for rest in _places(value))


def _spot(raw: bytes, rng: random.Random) -> int:
    return rng.randrange(len(raw) + 1)


def _flip(raw: bytes, rng: random.Random) -> bytes:
    changed = bytearray(raw or b"x")
    for _ in range(rng.choice([1, 1, 3, 30])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(what: bytes) -> Callable[[bytes, random.Random], bytes]:
    def insert(raw: bytes, rng: random.Random) -> bytes:
        spot = _spot(raw, rng)
        return raw[:spot] + what + raw[spot:]

    return insert


def _without(raw: bytes, rng: random.Random) -> bytes:
    start = _spot(raw, rng)
    return raw[:start] + raw[start + rng.choice([1, 10, 100]) :]


def _lines(change: Callable[[list[bytes], random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def on_lines(raw: bytes, rng: random.Random) -> bytes:
        lines = raw.splitlines(keepends=True) or [b"\n"]
        change(lines, rng)
        return b"".join(lines)

    return on_lines


def _twice(lines: list[bytes], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))


def _drop(lines: list[bytes], rng: random.Random) -> None:
    lines.pop(rng.randrange(len(lines)))


_BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bits": _flip,
    "cut short": lambda raw, rng: raw[: _spot(raw, rng)],
    "beginning lost": lambda raw, rng: raw[_spot(raw, rng) :],
    "empty": lambda raw, rng: b"",
    "white space only": lambda raw, rng: b" \n\t\n",
    "bytes lost": _without,
    "zeros": _insert(b"\0" * 16),
    "zeros only": lambda raw, rng: b"\0" * len(raw),
    "noise": lambda raw, rng: rng.randbytes(200),
    "noise inside": lambda raw, rng: _insert(rng.randbytes(20))(raw, rng),
    "a line twice": _lines(_twice),
    "a line lost": _lines(_drop),
    "lines shuffled": _lines(lambda lines, rng: rng.shuffle(lines)),
    "byte order mark": lambda raw, rng: codecs.BOM_UTF8 + raw,
    "UTF-16": lambda raw, rng: raw.decode(errors="replace").encode("utf-16"),
    "UTF-32": lambda raw, rng: raw.decode(errors="replace").encode("utf-32"),
    "Latin-1": _insert("naïve café".encode("latin-1")),
    "Windows line ends": lambda raw, rng: raw.replace(b"\n", b"\r\n"),
    "old line ends": lambda raw, rng: raw.replace(b"\n", b"\r"),
    "line separators": _insert("\u2028\u0085\u000c".encode()),
    "the file twice": lambda raw, rng: raw + raw,
    "an HTML page": lambda raw, rng: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    "a pickle": lambda raw, rng: b"\x80\x04c__builtin__\nexec\n(Vopen('ran','w')\ntR.",
    "a Git LFS pointer": lambda raw, rng: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "conflict marks": _insert(b"\n<<<<<<< HEAD\n=======\n>>>>>>> other\n"),
}


def _substitute(pattern: str, values: list[str]) -> Callable[[str, random.Random], str]:
    def substitute(text: str, rng: random.Random) -> str:
        found = list(re.finditer(pattern, text))
        if not found:
            return text + rng.choice(values)
        one = rng.choice(found)
        return text[: one.start()] + rng.choice(values) + text[one.end() :]

    return substitute


_TEXT: dict[str, Callable[[str, random.Random], str]] = {
    "another number": _substitute(r"(?<![\w.])\d[\d.e-]*", NUMBERS),
    "another word": _substitute(r"[A-Za-z_]\w*", TEXTS),
    "alias bomb": lambda text, rng: BOMB + text,
    "alias bomb in a value": lambda text, rng: text + "\n" + BOMB + "metadata: *a9\n",
    "merge bomb": lambda text, rng: (
        "m0: &m0 {k: v}\n"
        + "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 9))
        + text
    ),
    "deep list": lambda text, rng: text + "\nx: " + "[" * rng.choice([100, DEEP]),
    "deep objects": lambda text, rng: '{"a":' * rng.choice([100, DEEP]) + text,
    "deep lines": lambda text, rng: text + "\n" + "".join(" " * n + "a:\n" for n in range(rng.choice([50, 400]))),
    "a tag": _substitute(r"(?<=: )\S+", TAGS),
    "a key twice": lambda text, rng: _lines(_twice)(text.encode(errors="replace"), rng).decode(errors="replace"),
    "a tab": _substitute(r"\n  ", ["\n\t"]),
    "two documents": lambda text, rng: text + "\n---\n" + text,
    "no colon": _substitute(r": ", [" "]),
    "another bracket": _substitute(r"[\[\]{}\"',:]", list("[]{}\"',:|>&*!%@`")),
    "long key": lambda text, rng: text + f"\n{'k' * LONG}: 1\n",
    "many keys": lambda text, rng: text + "\n" + "".join(f"k{n}: 1\n" for n in range(2000)),
    "a NaN": _substitute(r"(?<![\w.])\d[\d.e-]*", ["NaN", "Infinity", "-Infinity"]),
}


def _rename(parent: Tree, key: Any, rng: random.Random) -> None:
    name = rng.choice([str(key)[1:], f"{key}s", str(key).upper(), f"{key} ", *TEXTS, 1, None, True])
    parent[name] = parent.pop(key)


def _nested(parent: Tree, key: Any, rng: random.Random) -> None:
    value = parent[key]
    for _ in range(rng.choice([1, 2, 200])):
        value = [value] if rng.random() < 0.5 else {"a": value}
    parent[key] = value


def _repeated(parent: Tree, key: Any, rng: random.Random) -> None:
    if not isinstance(parent[key], list | str):
        raise TypeError
    parent[key] = parent[key] * rng.choice([2, 2000])


def _put(values: Callable[[Tree, random.Random], Tree]) -> Callable[[Tree, Any, random.Random], None]:
    def put(parent: Tree, key: Any, rng: random.Random) -> None:
        parent[key] = values(parent[key], rng)

    return put


def _delete(parent: Tree, key: Any, rng: random.Random) -> None:
    del parent[key]


_TREE: dict[str, Callable[[Tree, Any, random.Random], None]] = {
    "dropped": _delete,
    "renamed": _rename,
    "another value": _put(lambda value, rng: rng.choice(VALUES)),
    "another number": _put(lambda value, rng: rng.choice([v for v in VALUES if isinstance(v, int | float)])),
    "another text": _put(lambda value, rng: rng.choice(TEXTS)),
    "null": _put(lambda value, rng: None),
    "a text of it": _put(lambda value, rng: str(value)),
    "a list of it": _put(lambda value, rng: [value]),
    "an object of it": _put(lambda value, rng: {"value": value}),
    "nested": _nested,
    "repeated": _repeated,
    "times a million": _put(lambda value, rng: round(value * 10**6)),
    "negative": _put(lambda value, rng: -value),
    "plus a bit": _put(lambda value, rng: value + 0.5),
    "shuffled": _put(lambda value, rng: rng.sample(value, len(value))),
    "emptied": _put(lambda value, rng: type(value)()),
    "unknown key": lambda parent, key, rng: parent.update({rng.choice(TEXTS): rng.choice(VALUES)}),
}


def yaml_of(tree: Tree) -> bytes:
    """A tree as YAML, whatever is in it."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=10**6).encode(errors="surrogatepass")


def json_of(tree: Tree) -> bytes:
    """A tree as JSON, with what JSON does not have: NaN, infinities and half characters."""
    return json.dumps(tree).encode()


def changed_yaml(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A YAML file with one wrong value or key."""
    tree, how = changed_tree(yaml.safe_load(raw), rng)
    return yaml_of(tree), how


def changed_json(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A JSON file with one wrong value or key."""
    tree, how = changed_tree(json.loads(raw), rng)
    return json_of(tree), how


def changed_lines(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A JSONL file in one or all of whose lines one value or key is wrong."""
    lines = [json.loads(line) for line in raw.splitlines()]
    if not lines:
        return json_of(rng.choice(VALUES)), "another value"
    state, which = rng.getrandbits(64), rng.randrange(len(lines))
    everywhere = rng.random() < 0.3
    how = ""
    for number, line in enumerate(lines):
        if everywhere or number == which:
            lines[number], how = changed_tree(line, random.Random(state))
    return b"\n".join(map(json_of, lines)) + b"\n", how + (" in every line" if everywhere else "")


def changed_table(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A Parquet file with one column of another type, name or content, or none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(raw))
    index = rng.randrange(table.num_columns)
    name, count = table.column_names[index], table.num_rows
    columns: dict[str, Callable[[], Any]] = {
        "nulls": lambda: pa.nulls(count),
        "lists": lambda: pa.array([[1, 2]] * count),
        "structs": lambda: pa.array([{"a": {"b": n}} for n in range(count)]),
        "bytes": lambda: pa.array([b"\xff\x00"] * count),
        "times": lambda: pa.array([n * 10**15 for n in range(count)], pa.timestamp("ns")),
        "NaN": lambda: pa.array([math.nan] * count),
        "large numbers": lambda: pa.array([2**64 - 1] * count, pa.uint64()),
        "categories": lambda: pa.array(["x"] * count).dictionary_encode(),
        "decimals": lambda: pa.array([None] * count, pa.decimal128(38, 9)),
        "long texts": lambda: pa.array(["y" * LONG] * count),
        "half of it": lambda: pa.array(table.column(index).to_pylist()[: count // 2] + [None] * (count - count // 2)),
    }
    how = rng.choice([*sorted(columns), "dropped", "renamed", "twice", "no rows"])
    if how == "dropped":
        table = table.drop_columns([name])
    elif how == "renamed":
        table = table.rename_columns(
            [rng.choice(TEXTS[:-4]).replace("\ud800", "?") if n == name else n for n in table.column_names]
        )
    elif how == "twice":
        table = table.append_column(name, table.column(index))
    elif how == "no rows":
        table = table.slice(0, 0)
    else:
        table = table.set_column(index, name, columns[how]())
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue(), f"{how} at {name}"


def changed_header(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors file with one wrong value or key in its header, or a wrong length of it."""
    (length,) = struct.unpack("<Q", raw[:8])
    if rng.random() < 0.15:
        wrong = rng.choice([0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1])
        return struct.pack("<Q", wrong) + raw[8:], f"header of {wrong} bytes"
    tree, how = changed_tree(json.loads(raw[8 : 8 + length]), rng)
    header = json_of(tree)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :], how
