"""Corpora: texts of every format, pinned by their content."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from harness.errors import SpecError
from harness.models.base_model import resolve_model
from harness.tasks.corpus import corpus_notes, corpus_path, text_rows, with_corpus
from harness.tasks.training_rows import Row

from .writing import write_rows

TEXTS = ["One text\nof two lines.", "Another."]


def test_text_rows(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    write_rows(path, [{"text": "one"}, {"text": "two", "source": "x"}])
    assert text_rows(path) == [Row(completion="one"), Row(completion="two")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a readable corpus, but there is no such file"),
        ("", "must hold rows, but is empty"),
        ('{"text": "a"}\n{"txt": "b"}\n', "row 2 has none"),
        ("not json\n", "must hold one JSON object per line"),
        ("[1]\n", "must hold one JSON object per row, but row 1 is '1'"),
        ("[]", "must hold texts, but is empty"),
    ],
)
def test_a_broken_corpus_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SpecError, match=message):
        text_rows(path)


def written(folder: Path, name: str) -> Path:
    """The two texts in a file of the format that its name says."""
    path, rows = folder / name, Dataset.from_dict({"text": TEXTS, "id": [1, 2]})
    match name.split(".", 1)[1]:
        case "txt":
            path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8-sig")
        case "csv":
            rows.to_csv(path)
        case "parquet":
            rows.to_parquet(path)
        case "jsonl.gz":
            write_rows(folder / "plain", list(rows))
            path.write_bytes(gzip.compress((folder / "plain").read_bytes()))
        case "one":
            rows.save_to_disk(path)
        case "two":
            DatasetDict(a=rows.select([0]), b=rows.select([1])).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["x.txt", "x.csv", "x.parquet", "x.jsonl.gz", "x.one", "x.two"])
def test_a_corpus_may_have_any_format(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name)
    assert corpus_path(str(path)) == path
    assert text_rows(path) == [Row(completion=text) for text in TEXTS]
    base = replace(resolve_model("tiny-1m"), corpus=str(path))
    notes = corpus_notes(base)
    assert notes == (("each paragraph of x.txt is a row",) if name == "x.txt" else ())
    assert with_corpus(base, ()).corpus == with_corpus(base, ()).corpus != base.ref.corpus


def test_json_lines_keep_the_fingerprint_that_records_have(tmp_path: Path) -> None:
    """SHA-256 of the file, also under a name that says nothing of JSON."""
    for name in ("corpus.jsonl", "corpus.txt", "corpus"):
        path = tmp_path / name
        write_rows(path, [{"text": "one"}, {"text": "two"}])
        pinned = with_corpus(replace(resolve_model("tiny-1m"), corpus=str(path)), ()).corpus
        assert pinned == hashlib.sha256(path.read_bytes()).hexdigest()[:20]


def test_the_name_of_a_task_is_no_file() -> None:
    assert corpus_path("tb_sort") is None
