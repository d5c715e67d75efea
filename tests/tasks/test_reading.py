"""Files as people have them: each value as it stands in its file, or one sentence."""

from __future__ import annotations

import bz2
import csv
import decimal
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.tasks.data import LocalFiles, locate
from harness.tasks.definition import Definition
from harness.tasks.reading import samples
from harness.tasks.table import docs, mixed_columns
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task, training_rows

from .writing import CHOICE, GENERATE, ROWS, write_rows, write_task


def source_of(folder: Path, kind: str, content: str | bytes, name: str = "rows", **options: Any) -> LocalFiles:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = locate(Definition(dataset_path=kind, dataset_kwargs={"data_files": name, **options}), folder, "task t")
    assert isinstance(found, LocalFiles)
    return found


def rows_of(folder: Path, kind: str, content: str | bytes, **options: Any) -> list[dict[str, Any]]:
    return docs(source_of(folder, kind, content, **options).load("train"))


CELLS = ["007", "1.50", "None", "NA", "null", "true", "1e5", "-0", "2024-01-01", "123456789012345678901", " x "]


def test_cells_of_a_csv_file_are_texts(tmp_path: Path) -> None:
    content = "q,a\n" + "".join(f"item,{cell}\n" for cell in CELLS)
    assert [row["a"] for row in rows_of(tmp_path, "csv", content)] == CELLS


def test_an_empty_cell_is_no_value(tmp_path: Path) -> None:
    assert rows_of(tmp_path, "csv", "q,a\nx,\n,y\n") == [{"q": "x", "a": None}, {"q": None, "a": "y"}]


SEPARATED = {
    "commas": ("q,a\nx; y,1\n", {"q": "x; y", "a": "1"}),
    "semicolons": ("q;a\nx, y;1,5\n", {"q": "x, y", "a": "1,5"}),
    "tabs": ("q\ta\nx, y\t1\n", {"q": "x, y", "a": "1"}),
    "bars": ("q|a\nx|1\n", {"q": "x", "a": "1"}),
    "one column": ("text\nHello!\n", {"text": "Hello!"}),
    "a field of two lines": ('q,a\r\n"x\r\ny, ""z""",1\r\n', {"q": 'x\r\ny, "z"', "a": "1"}),
    "a mark": ("\ufeffq,a\nx,1\n", {"q": "x", "a": "1"}),
    "a first column without a name": (",q\n0,x\n", {"Unnamed: 0": "0", "q": "x"}),
    "empty lines": ("q,a\n\nx,1\n\n", {"q": "x", "a": "1"}),
}


@pytest.mark.parametrize("case", SEPARATED)
def test_separators_are_found_and_said(tmp_path: Path, case: str) -> None:
    content, row = SEPARATED[case]
    assert rows_of(tmp_path, "csv", content) == [row]
    notes = source_of(tmp_path, "csv", content).notes()
    named = case in ("semicolons", "tabs", "bars")
    assert notes == ((f"the fields of rows stand between {case}",) if named else ())


@pytest.mark.parametrize(("sep", "key"), [(";", "sep"), ("\\t", "delimiter"), ("#", "sep")])
def test_a_stated_separator_wins(tmp_path: Path, sep: str, key: str) -> None:
    content = sep.replace("\\t", "\t").join(["q,b", "a,c"]) + "\n" + sep.replace("\\t", "\t").join(["1,2", "3,4"])
    source = source_of(tmp_path, "csv", content, **{key: sep})
    assert docs(source.load("train")) == [{"q,b": "1,2", "a,c": "3,4"}]
    assert source.notes() == ()


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_what_a_writer_of_csv_wrote_is_read(tmp_path_factory: pytest.TempPathFactory, rows: Any, sep: str) -> None:
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "x.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=sep, quoting=csv.QUOTE_ALL).writerows([("q", "a"), *rows])
    found = rows_of(folder, "csv", (folder / "x.csv").read_bytes(), sep=sep)
    assert [(row["q"], row["a"]) for row in found] == rows


def test_numbers_of_json_are_what_they_are(tmp_path: Path) -> None:
    values: list[Any] = [5, 2.5, 10**30, None, -1]
    content = "".join(json.dumps({"id": value, "of": {"x": [value]}}) + "\n" for value in values)
    found = rows_of(tmp_path, "json", content)
    assert [(row["id"], type(row["id"]), row["of"]) for row in found] == [(v, type(v), {"x": [v]}) for v in values]


def test_nested_values_get_no_keys_of_other_rows(tmp_path: Path) -> None:
    rows = [{"a": {"x": 1}}, {"a": {"y": [{}, {"z": None}]}}]
    assert rows_of(tmp_path, "json", json.dumps(rows)) == rows


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(st.lists(st.fixed_dictionaries({"a": values, "b": st.integers()}), min_size=1, max_size=5))
def test_any_json_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    found = rows_of(tmp_path_factory.mktemp("json"), "json", "".join(json.dumps(row) + "\n" for row in rows))
    assert json.dumps(found, sort_keys=True) == json.dumps(rows, sort_keys=True)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(("kind", "content"), [("json", '{"q": "x"}\n'), ("csv", "q\nx\n")])
def test_compressed_files_are_unpacked(tmp_path: Path, pack: Any, kind: str, content: str) -> None:
    assert rows_of(tmp_path, kind, pack(content.encode())) == [{"q": "x"}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("kind", "content"), [("json", '{"q": "é"}\n'), ("json", '[{"q": "é"}]'), ("csv", "q\né\n"), ("text", "é")]
)
def test_a_mark_at_the_beginning_is_no_content(tmp_path: Path, encoding: str, kind: str, content: str) -> None:
    assert [list(row.values()) for row in rows_of(tmp_path, kind, content.encode(encoding))] == [["é"]]


def test_a_text_has_a_row_for_each_paragraph_or_line() -> None:
    text = "one\r\ntwo\r\n\r\n three\n \t\nfour\n\n\n"
    assert samples(text, "paragraph") == ["one\ntwo", "three", "four"]
    assert samples(text, "line") == ["one", "two", "three", "four"]
    assert samples(text, "document") == ["one\ntwo\n\n three\n \t\nfour"]


@pytest.mark.parametrize(
    ("content", "options", "rows", "note"),
    [
        ("a\nb\n\nc\n", {}, ["a\nb", "c"], ("each paragraph of rows is a row",)),
        ("a\nb\n\n\n", {}, ["a", "b"], ("each line of rows is a row",)),
        ("a\nb\n\nc\n", {"sample_by": "line"}, ["a", "b", "c"], ()),
        ("a\nb\n\nc\n", {"sample_by": "document"}, ["a\nb\n\nc"], ()),
    ],
)
def test_plain_texts(tmp_path: Path, content: str, options: Any, rows: list[str], note: tuple[str, ...]) -> None:
    source = source_of(tmp_path, "text", content, **options)
    assert docs(source.load("train")) == [{"text": row} for row in rows]
    assert source.notes() == note


def test_arrow_files_and_saved_folders(tmp_path: Path) -> None:
    rows = [{"q": "x", "a": 1}, {"q": "y", "a": 2}]
    made = Dataset.from_list(rows)
    DatasetDict(train=made, test=made.select([1])).save_to_disk(tmp_path / "two")
    made.save_to_disk(tmp_path / "one")
    two, one = (locate(Definition(dataset_path=name), tmp_path, "task t") for name in ("two", "one"))
    assert (docs(two.load("train")), docs(two.load("test")), docs(one.load("train"))) == (rows, rows[1:], rows)
    (file,) = (tmp_path / "one").glob("*.arrow")
    assert rows_of(tmp_path, "arrow", file.read_bytes()) == rows
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "two").rename(tmp_path / "elsewhere" / "moved")
    moved = locate(Definition(dataset_path="moved"), tmp_path / "elsewhere", "task t")
    assert json.dumps(moved.identity()) == json.dumps(moved.identity())
    assert "moved" not in json.dumps(moved.identity())


def test_what_pandas_writes_as_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"q": pd.Categorical(["x", "y", "x"]), "d": [decimal.Decimal("1.50")] * 3})
    frame.to_parquet(tmp_path / "frame")
    found = rows_of(tmp_path, "parquet", (tmp_path / "frame").read_bytes())
    assert found == [{"q": q, "d": decimal.Decimal("1.50")} for q in "xyx"]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
BROKEN: list[tuple[str, str | bytes, str]] = [
    *((kind, "", "must hold rows, but is empty") for kind in ("json", "csv", "text", "parquet", "arrow")),
    *((kind, POINTER, "is a Git LFS pointer") for kind in ("json", "csv", "text", "parquet", "arrow")),
    *((kind, "<!DOCTYPE html><html>", "is a web page or XML") for kind in ("json", "csv", "parquet", "arrow")),
    ("csv", b"PK\x03\x04...", "an archive or a workbook"),
    ("json", b"PAR1....", "a Parquet file: set dataset_path: parquet"),
    ("csv", "q,a\nx,1,2\n", r"rows, line 2: a row must have the 2 fields of the header, but has 3 between commas"),
    ("csv", "q,a\nx,1\ny\n", r"line 3: a row must have the 2 fields of the header, but has 1"),
    ("csv", 'q,a\n"x,1\ny,2\n', r"line 3 must be separated values, but is not \(unexpected end of data\)"),
    ("csv", "q,a,a\nx,1,2\n", "the header must name each column once, but names 'a' more often"),
    ("csv", "q,,a\nx,1,2\n", "has no name for column 2"),
    ("csv", "q,a\nx,é\n".encode("latin-1"), "must be text in UTF-8, but line 2 is not"),
    ("json", '{"q": 1}\n{"q": ', "line 2 must hold one JSON object per line"),
    ("json", '[{"q": 1},\n{"q": ]', "must hold a JSON array of rows, .* at line 2, column 7"),
    ("json", "[1]", "row 1 is '1'"),
    ("json", '"x"\n', "row, but line 1 is 'x'"),
    ("json", '{"q": 1, "q": 2}', "the key 'q' stands twice"),
    ("json", "[" * 100_000, "must hold a JSON array of rows"),
    ("json", gzip.compress(b'{"q": 1}\n' * 99)[:-9], "is cut off or damaged"),
    ("parquet", b"PAR1 and no more", "is cut off or damaged"),
    ("parquet", "{}", "is something else: correct dataset_path"),
    ("arrow", b"ARROW1 and no more", "is cut off or damaged"),
]


@pytest.mark.parametrize(("kind", "content", "message"), BROKEN, ids=lambda value: str(value)[:20])
def test_a_broken_file_is_one_sentence(tmp_path: Path, kind: str, content: str | bytes, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        rows_of(tmp_path, kind, content)
    assert str(tmp_path / "rows") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("csv", {"sep": "::"}, "dataset_kwargs.sep must be one character, but is '::'"),
        ("text", {"sample_by": "word"}, "dataset_kwargs.sample_by must be one of those known"),
        ("json", {"field": "dta"}, "did you mean 'data'"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path: Path, kind: str, options: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        rows_of(tmp_path, kind, '{"data": [{"q": 1}]}', **options)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("jsn", "did you mean 'json'. valid: a folder, arrow, csv, json, owner/name, parquet, text"),
        ("csvs", "did you mean 'csv'"),
        (
            "no/folder",
            "the hub dataset no/folder must be .* or correct dataset_path, which may be json, .* a folder",
        ),
        (".", "must be what datasets' save_to_disk wrote"),
    ],
)
def test_a_dataset_path_that_is_nothing(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        locate(Definition(dataset_path=path), tmp_path, "task t")


def test_a_column_of_mixed_types_stops_only_who_uses_it(tmp_path: Path) -> None:
    rows = [row | {"extra": i if i % 3 else str(i)} for i, row in enumerate(ROWS)]
    write_task(tmp_path, CHOICE, train=rows[:30], test=rows[30:])
    task = find_task("mine", (tmp_path,))
    check_task(task)
    assert {row.doc["extra"] for row in training_rows(task)} <= {row["extra"] for row in rows}
    assert mixed_columns(task.split("train"))
    write_task(tmp_path, CHOICE | {"doc_to_text": "{{text}} {{extra}}"}, train=rows[:30], test=rows[30:])
    said = r"doc_to_text needs values of one kind in 'extra', but train.jsonl, row 2 holds a number \(1\) and train.jsonl, row 1 a text"
    with pytest.raises(SpecError, match=said):
        check_task(find_task("mine", (tmp_path,)))


def test_numbers_with_and_without_a_fraction_train_as_they_stand(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": i if i % 2 else i + 0.5} for i in range(40)]
    write_task(tmp_path, GENERATE | {"doc_to_target": "label"}, train=rows[:30], test=rows[30:])
    found = {row.doc["text"]: row.completion for row in training_rows(find_task("mine", (tmp_path,)))}
    assert found.items() <= {row["text"]: f" {row['label']}" for row in rows}.items()


def test_a_function_over_rows_sees_what_stands_in_the_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"a": 5, "b": 1}, {"a": 2.5, "b": 2}, {"a": "x", "b": 3}])
    rows = locate(Definition(dataset_path="json", dataset_kwargs={"data_files": "rows.jsonl"}), tmp_path, "t").load(
        "train"
    )
    mapped = rows.map(lambda row: {"seen": str(row["a"])}).filter(lambda row: row["b"] > 1)
    assert docs(mapped) == [{"a": 2.5, "b": 2, "seen": "2.5"}, {"a": "x", "b": 3, "seen": "x"}]


def test_fingerprints_change_only_where_cells_are_other_than_they_were(tmp_path: Path) -> None:
    """Before, 007 was 7, and Arrow made 5.0 of 5 beside 2.5: records of such rows are no records of these."""
    same = [("csv", "q,a\nx,one\n,two\n"), ("json", '{"a": 5}\n{"b": "x"}\n'), ("csv", "q;a\nx;1\n")]
    other = [
        ("csv", "q,a\nx,007\n"),
        ("csv", "q,a\nx,NA\n"),
        ("csv", "q,a\nx,true\n"),
        ("json", '{"a": 5}\n{"a": 2.5}\n'),
    ]
    for kind, content in same[:2]:
        assert len(source_of(tmp_path, kind, content).identity()) == 3  # type: ignore[arg-type]
    for kind, content in [*other, same[2]]:
        assert len(source_of(tmp_path, kind, content).identity()) == 4  # type: ignore[arg-type]
