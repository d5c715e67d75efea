"""Dataclasses as JSON and back: every type is checked, unknown fields stay, and a field that is added orphans nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import StorageError
from harness.records.codec import (
    Misfit,
    Record,
    added,
    canonical_json,
    decode,
    fingerprint,
    read_records,
    to_json,
    unknown_fields,
)
from harness.records.trial import TrialStatus
from harness.space import Scalar


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    name: str
    flag: bool = False


@dataclass(frozen=True, kw_only=True)
class Whole(Record):
    count: int
    share: float
    status: TrialStatus = TrialStatus.COMPLETE
    role: Literal["a", "b"] = "a"
    limit: int | None = 3
    part: Part = Part(name="own")
    parts: tuple[Part, ...] = ()
    seconds: Mapping[str, float] | None = None
    params: Mapping[str, Scalar] = field(default_factory=dict)
    anything: Any = None


@dataclass(frozen=True, kw_only=True)
class Later(Whole):
    """`Whole` after a field was added."""

    extra: int = added(5)


WHOLE = {"count": 1, "share": 0.5}
parts = st.builds(Part, name=st.text(), flag=st.booleans())
finite = st.floats(allow_nan=False, allow_infinity=False)
integers = st.integers(-(2**63) + 1, 2**63 - 1)
wholes = st.builds(
    Whole,
    count=integers,
    share=finite | integers,
    status=st.sampled_from(TrialStatus),
    role=st.sampled_from(["a", "b"]),
    limit=st.none() | integers,
    part=parts,
    parts=st.lists(parts, max_size=3).map(tuple),
    seconds=st.none() | st.dictionaries(st.text(), finite, max_size=3),
    params=st.dictionaries(st.text(), st.booleans() | integers | finite | st.text(), max_size=3),
    anything=st.none() | st.lists(st.integers() | st.text(), max_size=2),
    unknown=st.dictionaries(st.sampled_from(["x", "y"]), st.lists(st.integers(), max_size=2), max_size=2),
)


@given(wholes)
def test_a_record_survives_json(whole: Whole) -> None:
    assert decode(Whole, json.loads(json.dumps(to_json(whole)))) == whole


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"count": "1"}, 'count must be a whole number of 64 bits, but is "1"'),
        ({"count": 1.0}, "count must be a whole number of 64 bits, but is 1.0"),
        ({"count": True}, "count must be a whole number of 64 bits, but is true"),
        ({"count": 2**63}, "count must be a whole number of 64 bits, but is 9223372036854775808"),
        ({"count": None}, "count must be there, but is null"),
        ({"share": float("inf")}, "share must be a finite number, but is Infinity"),
        ({"share": False}, "share must be a finite number, but is false"),
        ({"status": "fine"}, "status must be one of complete, pruned, out_of_memory, "),
        ({"status": ["complete"]}, "status must be one of complete, "),
        ({"role": "c"}, 'role must be one of a, b, but is "c"'),
        ({"limit": "x"}, 'limit must be a whole number of 64 bits, but is "x"'),
        ({"part": []}, r"part must be an object, but is \[\]"),
        ({"part": {}}, "part.name must be there, but is null"),
        ({"parts": {}}, "parts must be a list, but is {}"),
        ({"parts": [{"name": "x"}, {"name": 1}]}, r"parts\[1\].name must be a text, but is 1"),
        ({"seconds": {"train": "x"}}, 'seconds.train must be a finite number, but is "x"'),
        (
            {"params": {"rank": None}},
            "params.rank must be true or false or a whole number of 64 bits or a finite number",
        ),
        ({"params": {"rank": "x" * 99}, "share": []}, r"share must be a finite number, but is \[\]"),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_rule(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Misfit, match=sentence):
        decode(Whole, WHOLE | change)


def test_what_is_absent_or_null_takes_its_default() -> None:
    assert decode(Whole, WHOLE | {"part": None, "params": None}) == Whole(count=1, share=0.5)
    assert decode(Whole, WHOLE | {"limit": None}).limit is None  # null is a value where the annotation says so
    assert decode(Whole, WHOLE).limit == 3


def test_unknown_fields_stay_at_every_level() -> None:
    data = WHOLE | {"co2": 1, "part": {"name": "x", "new": [2]}, "parts": [{"name": "y"}, {"name": "z", "new": None}]}
    whole = decode(Whole, data)
    assert sorted(unknown_fields(whole)) == ["co2", "part.new", "parts[1].new"]
    again = to_json(replace(whole, count=2))
    assert again == to_json(decode(Whole, again))
    assert (again["co2"], again["part"]["new"], again["parts"][1]["new"]) == (1, [2], None)


def test_a_field_that_was_added_is_absent_at_its_default() -> None:
    before, after = Whole(count=1, share=0.5), Later(count=1, share=0.5)
    assert fingerprint(to_json(after)) == fingerprint(to_json(before))
    changed = replace(after, extra=6)
    assert fingerprint(to_json(changed)) != fingerprint(to_json(before))
    assert decode(Later, to_json(before)) == after
    assert decode(Later, to_json(changed)) == changed
    # the version without the field keeps it, and gives the same key
    assert fingerprint(to_json(decode(Whole, to_json(changed)))) == fingerprint(to_json(changed))


def test_canonical_json_refuses_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def test_a_line_that_is_not_whole_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"event": "a", "name": "x"}\n{"event": "b", "name": 1}\n{"event": "a", "name": "cut short"')
    assert [part.name for part in read_records(path, Part, event="a")] == ["x"]
    with pytest.raises(
        StorageError, match=r"lines.jsonl holds a line that is not whole \(name must be a text, but is 1"
    ):
        read_records(path, Part)
    path.write_text("[1]\n")
    with pytest.raises(StorageError, match="not whole"):
        read_records(path, Part, event="a")
    assert read_records(tmp_path / "none.jsonl", Part) == []
