"""Reading rows and making splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.tasks.data import locate
from harness.tasks.definition import Definition
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.splits import Part, cut, row_hash, split_parts
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task, training_rows

from .writing import CHOICE, ROWS, write_rows, write_task

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    rows = Dataset.from_list(ROWS)
    {"json": rows.to_json, "csv": rows.to_csv, "parquet": rows.to_parquet}[kind](str(path))
    source = locate(
        Definition(dataset_path=kind, dataset_kwargs={"data_files": {"train": [path.name]}}), tmp_path, "task"
    )
    assert list(source.load("train")) == ROWS


def test_json_array_field_and_separated_values(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"data": ROWS}))
    (tmp_path / "rows.tsv").write_text("text\tlabel\na\tno\n")
    read = {"data_files": "rows.json", "field": "data"}
    assert list(locate(Definition(dataset_path="json", dataset_kwargs=read), tmp_path, "task").load("train")) == ROWS
    read = {"data_files": "rows.tsv", "sep": "\t"}
    source = locate(Definition(dataset_path="csv", dataset_kwargs=read), tmp_path, "task")
    assert list(source.load("train")) == [{"text": "a", "label": "no"}]
    with pytest.raises(SpecError, match=r"split of dataset_kwargs\.data_files must be one of those known"):
        source.load("test")


SPLITS = {
    # named in the file (train, validation, test) -> rows of (train, validation, test), of 100 each
    ("a", "b", "c"): (100, 100, 100),
    ("a", None, "c"): (90, 10, 100),
    ("a", "b", None): (90, 10, 100),
    ("a", None, None): (80, 10, 10),
    (None, None, "c"): (0, 20, 80),
    (None, "b", None): (0, 20, 80),
    (None, "b", "c"): (0, 100, 100),
    ("a", "b", "b"): (90, 10, 100),
}


@pytest.mark.parametrize("named", SPLITS)
def test_missing_splits_are_made_by_hash(named: tuple[str | None, ...]) -> None:
    parts = split_parts(*named, where="task")
    data = {split: Dataset.from_list([{"id": f"{split}{i}"} for i in range(100)]) for split in "abc"}
    taken = {name: {row["id"] for row in part.take(data[part.split])} for name, part in parts.items()}
    assert tuple(len(taken.get(name, ())) for name in ("train", "validation", "test")) == SPLITS[named]
    assert sum(map(len, taken.values())) == len(set().union(*taken.values()))


texts = st.lists(st.sampled_from([f"text {i}" for i in range(30)]), min_size=2, max_size=60)


@settings(max_examples=40)
@given(texts, st.randoms())
def test_splits_depend_on_content_alone(values: list[str], rng: object) -> None:
    rows = [{"text": value} for value in values]
    shuffled = rows[:]
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    held, rest = (Part("x", *ends) for ends in ((0.0, 0.1), (0.1, 1.0)))
    chosen = [sorted(row["text"] for row in held.take(Dataset.from_list(r))) for r in (rows, shuffled)]
    left = [row["text"] for row in rest.take(Dataset.from_list(rows))]
    assert chosen[0] == chosen[1]
    assert sorted(chosen[0] + left) == sorted(values)
    assert not set(chosen[0]) & set(left), "equal rows must not be in both"
    assert chosen[0]
    # at least a tenth, and beyond it only copies of one row
    assert (
        len(chosen[0]) - chosen[0].count(max(chosen[0], key=lambda text: row_hash({"text": text})))
        <= len(values) / 10 + 0.5
    )


def test_the_hash_of_a_row_is_fixed() -> None:
    # printf '{"a":"é","b":1}' | sha256sum
    assert row_hash({"b": 1, "a": "é"}) == ("aa58fba8483623bed37c1b02edfccbdd9a53123837c20bfa4cb4049993a2872e")


def test_limit_takes_the_same_rows_whatever_their_order(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE)
    first = list(lm_eval_task(find_task("mine", (tmp_path,)), "test", 4).test_docs())
    write_task(tmp_path, CHOICE, test=ROWS[30:][::-1])
    again = list(lm_eval_task(find_task("mine", (tmp_path,)), "test", 4).test_docs())
    assert first == again == sorted(ROWS[30:], key=row_hash)[:4]
    assert first != ROWS[30:34]


@given(st.text(alphabet="ab .\n", max_size=200), st.integers(1, 30))
def test_cut_keeps_the_text(text: str, longest: int) -> None:
    pieces = cut(text, longest)
    assert all(0 < len(piece) <= longest and piece.strip() for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_cut_prefers_paragraphs_then_lines_then_sentences_then_words() -> None:
    assert cut("one\n\ntwo\nthree four", 10) == ["one\n\n", "two\n", "three four"]
    assert cut("One two. Three", 10) == ["One two. ", "Three"]
    assert cut("abcdef", 4) == ["abcd", "ef"]


def test_pieces_of_a_row_stay_in_its_split(tmp_path: Path) -> None:
    rows = [{"text": f"{i}a {i}b"} for i in range(20)]
    config = CHOICE | {"metadata": {"pieces": {"column": "text", "max_chars": 4}}, "training_split": None}
    write_task(tmp_path, config, test=rows)
    task = find_task("mine", (tmp_path,))
    sides = [{text["text"][:-1].strip("ab ") for text in task.split(name)} for name in ("validation", "test")]
    assert len(task.split("validation")) == 8
    assert len(task.split("test")) == 32
    assert not sides[0] & sides[1]


def test_pieces_of_no_column_are_refused(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"metadata": {"pieces": {"column": "txt", "max_chars": 4}}})
    with pytest.raises(SpecError, match=r"metadata.pieces must be \{column, max_chars\}"):
        find_task("mine", (tmp_path,)).split("test")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache laid out by hand, with one dataset at one commit."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "hub" / "datasets--someone--some"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    Dataset.from_list(ROWS[:30]).to_json(str(snapshot / "train.jsonl"))
    Dataset.from_list(ROWS[30:]).to_json(str(snapshot / "test.jsonl"))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_hub_dataset_is_pinned_to_its_commit(hub: Path, tmp_path: Path, revision: str | None) -> None:
    options = {"revision": revision} if revision else {}
    write_task(tmp_path, CHOICE | {"dataset_path": "someone/some", "dataset_kwargs": options})
    task = find_task("mine", (tmp_path,))
    assert task.source.identity() == ["someone/some", None, COMMIT, {}]
    assert list(task.split("test")) == ROWS[30:]


def test_a_hub_dataset_of_unknown_commit_is_refused(hub: Path, tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"dataset_path": "someone/other", "dataset_kwargs": {}})
    with pytest.raises(SpecError, match=r"pin dataset_kwargs\.revision"):
        find_task("mine", (tmp_path,))


def test_a_commit_that_is_not_cached_is_not_replaced_by_another(hub: Path, tmp_path: Path) -> None:
    options = {"revision": COMMIT[::-1]}
    write_task(tmp_path, CHOICE | {"dataset_path": "someone/some", "dataset_kwargs": options})
    task = find_task("mine", (tmp_path,))
    with pytest.raises(SpecError, match="must be in the hub's cache or reachable"):
        task.split("test")


def test_a_built_in_task_works_as_it_is(hub: Path, tmp_path: Path) -> None:
    """ARC-Easy in the shape of its hub repository, with rows made here."""
    snapshot = hub.parent / "datasets--allenai--ai2_arc" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
    files = "".join(f"  - split: {s}\n    path: ARC-Easy/{s}.jsonl\n" for s in ("train", "validation", "test"))
    (snapshot / "README.md").write_text(f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{files}---\n")
    (snapshot / "ARC-Easy").mkdir()
    choices = {"text": ["sun", "moon"], "label": ["A", "B"]}
    for split in ("train", "validation", "test"):
        rows = [{"question": f"{split} {i}?", "choices": choices, "answerKey": "AB"[i % 2]} for i in range(4)]
        write_rows(snapshot / "ARC-Easy" / f"{split}.jsonl", rows)
    task = find_task("arc_easy", ())
    rows = training_rows(task)
    assert (rows[1].prompt, rows[1].completion) == ("Question: train 1?\nAnswer:", " moon")
    assert check_task(task)[:1] == ("of several metrics, the first counts: acc",)
    assert len(lm_eval_task(task, "validation").test_docs()) == 4
