"""What was found out is kept while it is true: it is found again where what it depends on changes, or its file is damaged."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import yaml

from harness.driver import kept as module
from harness.driver.experiment import Site
from harness.driver.kept import kept
from harness.driver.resolve import resolve
from harness.errors import SpecError
from harness.plugins import use_project
from harness.records.codec import Record
from harness.records.paths import Paths
from harness.study.load import load_study


@dataclass(frozen=True)
class Found(Record):
    sizes: Mapping[str, int]
    label: str = ""


@pytest.fixture
def paths(tmp_path):
    return Paths(tmp_path / "results")


def finder():
    """Finds something, and says how often it was asked."""
    calls = []

    def find():
        calls.append(1)
        return Found({"a": 1}, "x")

    return find, calls


def test_it_is_found_once_for_the_same_content(paths, monkeypatch):
    find, calls = finder()
    assert [kept(paths, Found, ["m", 1], find) for _ in range(3)] == [Found({"a": 1}, "x")] * 3
    assert len(calls) == 1
    kept(paths, Found, ["m", 2], find)
    assert len(calls) == 2
    monkeypatch.setattr(module, "installed_code", lambda: "other")
    kept(paths, Found, ["m", 1], find)
    assert len(calls) == 3


def test_it_is_found_again_where_a_project_edits_its_metric(paths, tmp_path):
    (tmp_path / "plugins" / "metrics").mkdir(parents=True)
    find, calls = finder()
    try:
        for number in (1, 1, 2):
            (tmp_path / "plugins" / "metrics" / "mine.py").write_text(f"NUMBER = {number}")
            use_project(tmp_path)
            kept(paths, Found, ["m"], find)
    finally:
        use_project(tmp_path / "nothing")
    assert len(calls) == 2


def edited(text, **changes):
    content = json.loads(text)
    return json.dumps(content | {"found": content["found"] | changes})


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: edited(text, sizes={}),
        lambda text: edited(text, sizes={"a": 2}),
        lambda text: edited(text, later=1),
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "",
    ],
)
def test_it_is_found_again_where_its_file_is_damaged(damage, paths):
    find, calls = finder()
    kept(paths, Found, [], find)
    (path,) = paths.cache.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    assert kept(paths, Found, [], find) == Found({"a": 1}, "x")
    assert (len(calls), path.read_text()) == (2, whole)


def test_an_error_is_not_kept(paths):
    def fails():
        raise SpecError("no")

    for _ in range(2):
        with pytest.raises(SpecError):
            kept(paths, Found, [], fails)
    assert not paths.cache.exists()


def test_it_is_found_where_nothing_can_be_kept(tmp_path):
    (tmp_path / "results").write_text("a file where the folder should be")
    assert kept(Paths(tmp_path / "results"), Found, [], finder()[0]) == Found({"a": 1}, "x")


def test_a_study_that_was_resolved_is_resolved_again_without_loading_a_model_or_rendering_rows(
    world, tmp_path, monkeypatch
):
    shutil.copytree(world.tasks, tmp_path / "tasks")
    study = {
        "name": "s",
        "question": "q",
        "base_models": [str(world.llama)],
        "tasks": ["colour"],
        "off_target": ["echo"],
        "families": {"plain": {"method": "full"}, "low": {"method": "lora"}},
        "budget": {"trials": 1, "steps": 1},
    }
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(study))
    site = Site(paths=Paths(tmp_path / "results"), task_folders=(tmp_path / "tasks",))
    first = resolve(load_study(path), site)

    def refused(*_, **__):
        raise AssertionError("looked up again")

    for name in (
        "harness.models.soundness.check_model",
        "harness.models.base_model.load_config",
        "harness.models.base_model.load_tokenizer",
        "harness.tasks.training_rows.training_rows",
        "harness.tasks.overlap.refuse_same_rows",
    ):
        monkeypatch.setattr(name, refused)
    assert resolve(load_study(path), site) == first
    with (tmp_path / "tasks" / "train.jsonl").open("a") as file:
        file.write('{"word": "red", "number": 99, "answer": 1, "text": "new"}\n')
    with pytest.raises(AssertionError, match="looked up again"):
        resolve(load_study(path), site)
    monkeypatch.undo()
    assert resolve(load_study(path), site).tasks[0].rows == first.tasks[0].rows + 1
