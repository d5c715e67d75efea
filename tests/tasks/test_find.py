"""Finding and pinning tasks, and every sentence that refuses one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from harness.errors import SpecError
from harness.tasks.file import task_keys
from harness.tasks.group import GROUP_KEYS
from harness.tasks.metadata import TaskMetadata
from harness.tasks.schema import task_json_schema
from harness.tasks.task import find_task, task_folders, task_names
from harness.tasks.training_rows import check_task, training_rows

from .writing import CHOICE, GENERATE, ROWS, write_rows, write_task


def test_found_by_name_in_the_first_folder_that_has_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    write_task(second, CHOICE, name="other")
    write_task(first, CHOICE | {"metadata": {"chance": 0.5}})
    write_task(second, CHOICE | {"metadata": {"chance": 0.25}})
    assert find_task("mine", (first, second)).chance == 0.5
    assert task_names((first, second)) == ("mine", "other")


def test_found_by_path_with_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_task(tmp_path, CHOICE)
    monkeypatch.setenv("MY_TASKS", str(tmp_path))
    assert find_task("${MY_TASKS}/mine.yaml", ()).ref == find_task(str(path), ()).ref


def test_facts_of_a_task(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"metadata": {"licence": "CC0"}})
    task = find_task("mine", (tmp_path,))
    assert (task.name, task.output_type, task.metric) == ("mine", "multiple_choice", "acc")
    assert task.higher_is_better
    assert task.metadata == TaskMetadata(licence="CC0")
    assert "dataset_kwargs" not in task.config


def test_fingerprint_is_the_same_elsewhere_and_under_another_description(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "deeper"
    here.mkdir()
    there.mkdir(parents=True)
    write_task(here, CHOICE)
    write_task(there, CHOICE | {"metadata": {"description": "prose"}})
    assert find_task("mine", (here,)).ref == find_task("mine", (there,)).ref


@pytest.mark.parametrize("change", ["prompt", "row", "test row", "split"])
def test_fingerprint_changes_with_what_can_change_a_score(tmp_path: Path, change: str) -> None:
    write_task(tmp_path, CHOICE)
    before = find_task("mine", (tmp_path,)).ref.fingerprint
    changed = CHOICE | ({"doc_to_text": "{{text}}"} if change == "prompt" else {})
    changed |= {"validation_split": "test"} if change == "split" else {}
    changed |= {"test_split": None} if change == "split" else {}
    rows = [*ROWS[:29], {"text": "other", "label": "no"}] if change == "row" else ROWS[:30]
    write_task(tmp_path, changed, train=rows, test=ROWS[31:] if change == "test row" else ROWS[30:])
    assert find_task("mine", (tmp_path,)).ref.fingerprint != before


def test_changed_data_is_read_again_in_the_same_process(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE)
    assert len(find_task("mine", (tmp_path,)).split("test")) == 10
    write_rows(tmp_path / "test.jsonl", ROWS[35:])
    assert len(find_task("mine", (tmp_path,)).split("test")) == 5


def test_include_of_another_file(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE, name="_base")
    (tmp_path / "mine.yaml").write_text("include: _base.yaml\ndoc_to_text: 'Q: {{text}}'\n")
    task = find_task("mine", (tmp_path,))
    assert training_rows(task)[0].prompt.startswith("Q: word")
    assert task_names((tmp_path,)) == ("mine",)


def test_include_of_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("include: mine.yaml\n")
    with pytest.raises(SpecError, match="must not include itself"):
        find_task("mine", (tmp_path,))


BROKEN = {
    "unknown key": ({"doc_to_txt": "x"}, "did you mean 'doc_to_text'"),
    "no metric": ({"metric_list": None}, "metric_list must name a metric"),
    "unknown metric": ({"metric_list": [{"metric": "acc_nrm"}]}, "did you mean 'acc_norm'"),
    "metric with code from the hub": (
        {"metric_list": [{"metric": "rouge", "hf_evaluate": True, "higher_is_better": True}]},
        "metric must be one of those known",
    ),
    "unknown output type": ({"output_type": "multi_choice"}, "did you mean 'multiple_choice'"),
    "missing file": ({"dataset_kwargs": {"data_files": {"train": "no.jsonl"}}}, "no.jsonl must exist"),
    "no files": ({"dataset_kwargs": {}}, "data_files must map splits"),
    "unset variable": ({"dataset_kwargs": {"data_files": "${NOT_SET_ANYWHERE}/x"}}, "must set NOT_SET_ANYWHERE"),
    "unknown reader option": ({"dataset_kwargs": {"data_files": "train.jsonl", "fild": "x"}}, "did you mean 'field'"),
    "no dataset": ({"dataset_path": None}, "dataset_path must be"),
    "no split": ({"training_split": None, "test_split": None}, "test_split must name a split"),
    "scored on training rows": ({"test_split": "train"}, "must not be scored on"),
    "another name": ({"task": "yours"}, "task must equal the file's name"),
    "metric that is no mapping": ({"metric_list": ["acc"]}, "must hold values of lm-eval's kinds"),
    "metadata that is no mapping": ({"metadata": "words"}, "must hold values of lm-eval's kinds"),
    "unknown aggregation": (
        {"metric_list": [{"metric": "acc", "aggregation": "meen"}]},
        "aggregation must be one of those known, but got 'meen': did you mean 'mean'",
    ),
    "group": ({"task": ["a", "b"]}, "lists tasks, so it must be a group, but names none: add group: mine"),
    "chance": ({"metadata": {"chance": "half"}}, "metadata.chance must be the score of guessing"),
    "split that is a list": ({"test_split": ["test"]}, r"test_split must be a text, but is \['test'\]"),
    "split that is a number": ({"training_split": 1}, "training_split must be a text, but is 1"),
    "filters that are none": ({"filter_list": "first"}, "filter_list must be a list of mappings"),
    "code that may be": ({"unsafe_code": "no"}, "unsafe_code must be true or false"),
    "pictures": ({"doc_to_image": "picture"}, "doc_to_image is not supported"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_task_file_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    write_task(tmp_path, CHOICE | change)
    with pytest.raises(SpecError, match=message) as caught:
        find_task("mine", (tmp_path,))
    assert "\n" not in str(caught.value)


DATA = {
    "empty training split": ({}, [], "train.jsonl must hold rows, but is empty"),
    "label not in choices": ({}, [{"text": "a", "label": "maybe"}], r"row 1: the label must be one of \['no', 'yes'\]"),
    "label out of range": (
        {},
        [{"text": "a", "label": 2}],
        r"row 1: the label must be one of \['no', 'yes'\] or its index, but is 2",
    ),
    "missing column": ({"doc_to_text": "{{txt}}"}, ROWS, "did you mean 'text'"),
    "bare word that is no column": ({"doc_to_target": "labl"}, ROWS, "did you mean 'label'"),
    "row without a value": ({}, [*ROWS[:29], {"text": "a"}], "needs a value in 'label', but row"),
    "broken template": ({"doc_to_text": "{{text"}, ROWS, "must be valid jinja"),
    "mixed types": (
        {},
        [{"text": "a", "label": "no"}, {"text": ["b"], "label": "no"}],
        "doc_to_text needs values of one kind in 'text', but train.jsonl, row 2 holds a list",
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_broken_data_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    change, rows, message = DATA[case]
    splits = {"validation_split": "train2", "training_split": "train"}
    files = {"train": "train.jsonl", "train2": "test.jsonl", "test": "test.jsonl"}
    write_task(tmp_path, CHOICE | splits | {"dataset_kwargs": {"data_files": files}} | change, train=rows)
    with pytest.raises(SpecError, match=message) as caught:
        check_task(find_task("mine", (tmp_path,)))
    assert "\n" not in str(caught.value)


def test_a_template_that_minds_missing_values_may_have_them(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "hint": "h" if i % 2 else None, "label": "no"} for i in range(20)]
    write_task(tmp_path, CHOICE | {"doc_to_text": "{{text}}{% if hint %} {{hint}}{% endif %}"}, train=rows, test=rows)
    prompts = {row.prompt for row in training_rows(find_task("mine", (tmp_path,)))}
    assert prompts <= {f"t{i} h" if i % 2 else f"t{i}" for i in range(20)}


def test_broken_line_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE)
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "no"}\n{"text": \n')
    with pytest.raises(SpecError, match="line 2 must hold one JSON object"):
        find_task("mine", (tmp_path,)).split("train")


def test_a_task_that_is_only_evaluated_has_no_training_rows(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"training_split": None})
    task = find_task("mine", (tmp_path,))
    with pytest.raises(SpecError, match="must have a train split"):
        training_rows(task)
    assert check_task(task)[: len(task.notes)] == task.notes


@pytest.mark.parametrize("name", ["../tasks/mine", "/etc/passwd", "a/b", "", "mine\0", "x" * 300, "\ud800"])
def test_a_name_is_no_path(tmp_path: Path, name: str) -> None:
    (tmp_path / "tasks").mkdir()
    write_task(tmp_path / "tasks", CHOICE)
    with pytest.raises(SpecError, match="a task's name must be letters"):
        find_task(name, (tmp_path / "tasks",))


def test_unknown_name_gets_the_closest_one(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE)
    with pytest.raises(SpecError, match="did you mean 'mine'"):
        find_task("mne", (tmp_path,))


def test_built_in_tasks_and_groups_without_data_say_so() -> None:
    with pytest.raises(SpecError, match=r"task mmlu_[a-z_]+: the hub dataset cais/mmlu must be in the hub's cache"):
        find_task("mmlu", ())
    with pytest.raises(SpecError, match="hub dataset allenai/ai2_arc must be in the hub's cache"):
        find_task("arc_easy", ())


def test_notes_say_what_a_reader_must_know(tmp_path: Path) -> None:
    several = [{"metric": "exact_match", "higher_is_better": True, "aggregation": "mean"}, {"metric": "acc"}]
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": ["\n"]}
    write_task(tmp_path, GENERATE | {"metric_list": several, "generation_kwargs": sampled, "num_fewshot": 3})
    task = find_task("mine", (tmp_path,))
    assert [note.split()[0] for note in task.notes] == ["validation", "of", "scored", "samples"]
    assert task.config["generation_kwargs"] == sampled


def test_answers_are_drawn_only_where_the_file_says_so(tmp_path: Path) -> None:
    greedy = {"until": ["\n"], "do_sample": False, "temperature": 0.0}
    for given in ({"temperature": 0.7, "top_k": 3}, {"do_sample": True, "temperature": 0.0}):
        write_task(tmp_path, GENERATE | {"generation_kwargs": given | {"until": ["\n"]}, "repeats": 4})
        task = find_task("mine", (tmp_path,))
        assert (task.config["generation_kwargs"], task.config["repeats"]) == (greedy, 1)
        assert task.notes[-1] == "generates once, though its file repeats: a greedy answer is always the same"
    write_task(tmp_path, GENERATE | {"generation_kwargs": {"do_sample": True}, "repeats": 4})
    task = find_task("mine", (tmp_path,))
    assert (task.config["generation_kwargs"]["temperature"], task.config["repeats"]) == (1.0, 4)
    assert task.notes[-1].startswith("of 4 answers the first counts: name a filter")
    write_task(tmp_path, GENERATE | {"repeats": 0})
    with pytest.raises(SpecError, match="repeats must be a number of answers, but is 0"):
        find_task("mine", (tmp_path,))


def test_the_schema_accepts_what_is_accepted() -> None:
    schema = task_json_schema()
    assert set(schema["properties"]) == {*task_keys(), *GROUP_KEYS}
    assert set(CHOICE) <= set(schema["properties"])
    assert schema["properties"]["training_split"] == {"type": "string"}
    assert json.loads(json.dumps(schema)) == schema


def test_nothing_is_written_beside_the_data_or_to_the_users_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    folder = tmp_path / "tasks"
    folder.mkdir()
    write_task(folder, CHOICE)
    check_task(find_task("mine", (folder,)))
    assert not cache.exists()
    assert sorted(os.listdir(folder)) == ["mine.yaml", "test.jsonl", "train.jsonl"]


def test_the_shipped_task_files_are_complete() -> None:
    root = Path(__file__).parents[2]
    for path in (root / "studies" / "tasks").glob("[!_]*.yaml"):
        metadata = yaml.safe_load(path.read_text()).get("metadata", {})
        assert {"licence", "description"} <= set(metadata), path.name
    assert task_folders(root)[0] == root / "studies" / "tasks"
