"""Code in task files: never run before it is allowed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from harness.errors import SpecError
from harness.tasks.file import ALLOW_CODE
from harness.tasks.task import find_task
from harness.tasks.training_rows import training_rows

from .writing import CHOICE, write_task

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
def loud(rows):
    return rows.map(lambda row: {"text": row["text"].upper()}, keep_in_memory=True)
"""


@pytest.fixture
def with_code(tmp_path: Path) -> Path:
    path = write_task(tmp_path, CHOICE)
    path.write_text(path.read_text() + "process_docs: !function helper.loud\n")
    (tmp_path / "helper.py").write_text(CODE)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_function_tag_is_refused_with_the_hashes_and_nothing_runs(with_code: Path) -> None:
    with pytest.raises(SpecError) as caught:
        find_task("mine", (with_code.parent,))
    helper = with_code.parent / "helper.py"
    assert f"export {ALLOW_CODE}={digest(with_code)},{digest(helper)} " in str(caught.value)
    assert not (with_code.parent / "ran").exists()


def test_an_allowed_file_runs_on_every_split(with_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = with_code.parent / "helper.py"
    monkeypatch.setenv(ALLOW_CODE, f"{digest(with_code)}, {digest(helper)}")
    task = find_task("mine", (with_code.parent,))
    assert "WORD" in training_rows(task)[0].prompt
    assert task.split("test")[0]["text"].isupper()


def test_changed_code_must_be_allowed_again(with_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = with_code.parent / "helper.py"
    monkeypatch.setenv(ALLOW_CODE, f"{digest(with_code)},{digest(helper)}")
    before = find_task("mine", (with_code.parent,)).ref
    helper.write_text(CODE + "# changed\n")
    with pytest.raises(SpecError, match="must not run code unless you allow it"):
        find_task("mine", (with_code.parent,))
    monkeypatch.setenv(ALLOW_CODE, f"{digest(with_code)},{digest(helper)}")
    assert find_task("mine", (with_code.parent,)).ref != before


def test_code_in_an_included_file_is_refused_too(with_code: Path) -> None:
    with_code.rename(with_code.with_name("_base.yaml"))
    with_code.write_text("include: _base.yaml\n")
    with pytest.raises(SpecError, match=r"_base.yaml \("):
        find_task("mine", (with_code.parent,))


MAKER = """
from datasets import Dataset, DatasetDict
def make(longest, **others):
    rows = lambda count: Dataset.from_list([{"text": "x" * longest, "label": "no"}] * count)
    return DatasetDict(train=rows(3), test=rows(2))
"""


def test_a_function_that_makes_rows_gets_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in lm-eval; so keys that are not the harness's own are its arguments, and noted."""
    config = CHOICE | {"dataset_path": None, "dataset_kwargs": None, "metadata": {"chance": 0.5, "longest": 7}}
    path = write_task(tmp_path, config)
    path.write_text(path.read_text() + "custom_dataset: !function maker.make\n")
    (tmp_path / "maker.py").write_text(MAKER)
    monkeypatch.setenv(ALLOW_CODE, f"{digest(path)},{digest(tmp_path / 'maker.py')}")
    task = find_task("mine", (tmp_path,))
    assert task.split("test")["text"][:] == ["x" * 7] * 2
    assert task.chance == 0.5
    assert task.notes[-1] == "metadata that the harness does not read: longest"


def test_tasks_that_execute_code_are_refused(tmp_path: Path) -> None:
    path = write_task(tmp_path, CHOICE | {"unsafe_code": True})
    with pytest.raises(SpecError, match=digest(path)):
        find_task("mine", (tmp_path,))


def test_a_built_in_task_that_executes_code_is_refused() -> None:
    with pytest.raises(SpecError, match=r"humaneval.yaml must not run code unless you allow it"):
        find_task("humaneval", ())


def test_templates_cannot_reach_python(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"doc_to_text": "{{text.__class__.__mro__}}"})
    with pytest.raises(SpecError, match="unsafe"):
        training_rows(find_task("mine", (tmp_path,)))


def test_other_yaml_tags_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(CHOICE) + "task_alias: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(SpecError, match="must be valid YAML"):
        find_task("mine", (tmp_path,))
