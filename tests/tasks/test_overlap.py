"""Rows that splits share, counted by hand; same splits refused; small splits and those with one answer told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.tasks.overlap import NGRAM, Overlap, overlap, refuse_same_rows, task_overlap
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task

from .writing import CHOICE, ROWS, write_rows, write_task

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_overlap_by_hand() -> None:
    train = ["A  short Text", f"before {THIRTEEN} after", "unrelated"]
    test = [
        "a short text",  # exact: case and white space do not count
        f"Something else, then: {THIRTEEN.title()}!",  # 13 words in a row: punctuation does not count
        THIRTEEN.removesuffix(" thirteen"),  # 12 words: neither
        f"before {THIRTEEN} after",  # both
    ]
    assert overlap(train, test) == Overlap(exact=2, ngram=2)
    assert overlap([], test) == overlap(test, []) == Overlap(0, 0)
    # The runs of two rows are none: 13 words in a row stand in one text.
    assert overlap([THIRTEEN], THIRTEEN.split(" seven ")) == Overlap(0, 0)


texts = st.lists(st.text(alphabet="ab ", max_size=60), max_size=8)


@given(texts, texts)
def test_overlap_is_what_sets_of_runs_say(train: list[str], test: list[str]) -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall("\\w+", text)
        return {tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)}

    known = set().union(*map(runs, train))
    exact = sum(text.split() in [other.split() for other in train] for text in test)
    assert overlap(train, test) == Overlap(exact, sum(bool(runs(text) & known) for text in test))


def of_three(folder: Path, train: Any, validation: Any, test: Any, **changes: Any) -> Any:
    files = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    write_task(
        folder,
        CHOICE | {"validation_split": "validation", "dataset_kwargs": {"data_files": files}} | changes,
        train,
        test,
    )
    write_rows(folder / "validation.jsonl", validation)
    return find_task("mine", (folder,))


def test_each_two_splits_are_compared(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i}", "label": ["no", "yes"][i % 2]} for i in range(60)]
    task = of_three(tmp_path, rows[:30], [*rows[30:40], *rows[:2]], [*rows[40:], rows[0], *rows[30:33]])
    pairs = {pair: found.exact for pair, found in task_overlap(task).items()}
    assert pairs == {("train", "validation"): 2, ("train", "test"): 1, ("validation", "test"): 4}
    assert [note for note in check_task(task) if note.startswith("overlap")] == [
        "overlap: of 12 validation rows, 2 stand in the training rows word for word and 0 share 13 words in a row with one",
        "overlap: of 24 test rows, 1 stand in the training rows word for word and 0 share 13 words in a row with one",
        "overlap: of 24 test rows, 4 stand in the validation rows word for word and 0 share 13 words in a row with one",
    ]
    refuse_same_rows(task)


def test_messages_are_compared_as_a_whole(tmp_path: Path) -> None:
    system = {"role": "system", "content": f"always the same: {THIRTEEN}"}
    rows = [{"m": [system, {"role": "user", "content": f"say {i}"}], "text": "q", "label": "no"} for i in range(40)]
    task = of_three(tmp_path, rows[:20], rows[20:30], [*rows[30:], rows[0]])
    assert task_overlap(task)["train", "test"] == Overlap(exact=1, ngram=0)


def test_an_instruction_in_every_row_is_no_overlap(tmp_path: Path) -> None:
    rows = [row | {"instruction": f"please: {THIRTEEN}"} for row in ROWS]
    write_task(tmp_path, CHOICE, train=rows[:30], test=[*rows[30:], rows[0]])
    task = find_task("mine", (tmp_path,))
    in_train = rows[0] in list(task.split("train"))
    assert task_overlap(task)["train", "test"] == Overlap(exact=int(in_train), ngram=0)


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_splits_of_the_same_rows_are_refused(tmp_path: Path, first: str, second: str) -> None:
    splits = {"train": ROWS[:20], "validation": ROWS[20:30], "test": ROWS[30:]}
    refuse_same_rows(of_three(tmp_path, **splits))
    same = [*splits[first][::-1], splits[first][0]]  # in another order, one of them twice
    with pytest.raises(SpecError, match=f"'{first}' and '{second}' of its data must differ, but hold the same"):
        refuse_same_rows(of_three(tmp_path, **splits | {second: same}))


def test_one_file_as_two_splits_is_refused_when_a_study_is_planned(world: Any, tmp_path: Path) -> None:
    """Also where a tenth of its rows is held out for validation, so that the splits themselves differ."""
    from harness.driver.experiment import Site
    from harness.driver.resolve import resolve
    from harness.study.spec import StudySpec

    write_task(
        tmp_path,
        CHOICE | {"dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "train.jsonl"}}},
        name="twice",
    )
    given = {"question": "q", "base_models": [str(world.llama)], "families": {"a": {"method": "lora"}}}
    study = StudySpec(name="s", tasks=("twice",), budget={"trials": 1, "steps": 1}, **given)
    with pytest.raises(SpecError, match="hold the same 30 rows"):
        resolve(study, Site(task_folders=(tmp_path,)))


def test_small_splits_and_splits_of_one_answer_are_told(tmp_path: Path) -> None:
    """Two-sided sign test: five items that all differ give p = 2 / 2^5 = .0625, six give .03."""
    rows = [row | {"label": "yes"} for row in ROWS]
    task = of_three(tmp_path, ROWS[:20], ROWS[20:26], rows[30:35])
    assert check_task(task) == (
        "the test split has 5 rows: no difference between two models can show on fewer than 6",
        "every row of the test split has the same answer, 'yes': guessing it scores as well",
    )
