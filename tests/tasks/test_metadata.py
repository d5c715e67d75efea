"""What stands under a task file's `metadata`: every key has a type, and a misspelt key is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import SpecError
from harness.tasks.built_in import Index
from harness.tasks.facts import TaskFacts, task_facts
from harness.tasks.metadata import Chat, Pieces, Preference, TaskMetadata
from harness.tasks.schema import task_json_schema
from harness.tasks.task import find_task, task_folders, task_names

from .writing import CHOICE, write_task

GOOD = {
    "chance": 0.5,
    "licence": "CC0",
    "license": "CC0",
    "description": "Say yes or no.",
    "source": "https://example.org",
    "citation": "A paper.",
    "config_source": "https://example.org/task.yaml",
    "domain": "reviews",
    "metrics": {"acc": {"higher_is_better": True, "bounds": [0.0, 1.0]}},
    "preference": {"chosen": "good", "rejected": "bad"},
    "chat": {"messages": "turns", "tools": "functions", "plain": True},
    "score": "stars",
    "reward": {"regex": "a"},
    "pieces": {"column": "text", "max_chars": 4},
    "version": "1.0",
    "num_fewshot": 5,
}
WRONG = {
    "chance": (True, "metadata.chance must be the score of guessing, but is True: give a number"),
    "licence": (1, "metadata.licence: .*string, but got 1"),
    "license": (1, "metadata.license: .*string, but got 1"),
    "description": (["a"], r"metadata.description: .*string, but got \['a'\]"),
    "source": (1, "metadata.source: .*string, but got 1"),
    "citation": (1, "metadata.citation: .*string, but got 1"),
    "config_source": (1, "metadata.config_source: .*string, but got 1"),
    "domain": (1, "metadata.domain: .*string, but got 1"),
    "metrics": ({"acc": {"bounds": [1, 0]}}, "bounds must be the lowest and the highest value, but are .*: swap them"),
    "preference": ({"chosen": "good"}, "metadata.preference.rejected is required: add it"),
    "chat": ({"messages": 1}, "metadata.chat.messages: .*string, but got 1"),
    "score": (1, "metadata.score: .*string, but got 1"),
    "reward": (1, "metadata.reward must be a name, .*, but is 1: correct it"),
    "pieces": ({"column": "text", "max_chars": 0}, "metadata.pieces.max_chars: .*equal to 1, but got 0"),
    "version": ([1], r"metadata.version must be a number or a text, but is \[1\]: correct it"),
    "num_fewshot": ("5", "metadata.num_fewshot: .*integer, but got '5'"),
}


def refusal(folder: Path, metadata: object) -> str:
    write_task(folder, CHOICE | {"metadata": metadata})
    with pytest.raises(SpecError) as caught:
        find_task("mine", (folder,))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_is_tried_here() -> None:
    assert set(GOOD) == set(WRONG) == set(TaskMetadata.model_fields)


def test_every_key_is_read(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"doc_to_text": None, "doc_to_target": None, "metadata": GOOD})
    read = find_task("mine", (tmp_path,)).metadata
    assert (read.preference, read.chat, read.pieces) == (
        Preference(chosen="good", rejected="bad"),
        Chat(messages="turns", tools="functions", plain=True),
        Pieces(column="text", max_chars=4),
    )
    assert read.model_dump() == GOOD


@pytest.mark.parametrize("key", GOOD)
def test_a_misspelt_key_is_refused_with_the_nearest(tmp_path: Path, key: str) -> None:
    misspelt = key[:-1] + "x" + key[-1]
    assert f"did you mean '{key}'? valid: chance, chat, citation, " in refusal(tmp_path, {misspelt: GOOD[key]})


@pytest.mark.parametrize("key", WRONG)
def test_a_value_of_another_type_is_refused(tmp_path: Path, key: str) -> None:
    value, message = WRONG[key]
    said = refusal(tmp_path, {key: value})
    with pytest.raises(SpecError, match=message):
        raise SpecError(said)
    assert said.startswith("task mine: metadata.")


@pytest.mark.parametrize("key", ["preference", "pieces"])
def test_a_misspelt_key_further_in_is_refused(tmp_path: Path, key: str) -> None:
    inner = dict(GOOD[key])  # type: ignore[call-overload]
    last = list(inner)[-1]
    inner[last + "x"] = inner.pop(last)
    assert f"did you mean '{last}'?" in refusal(tmp_path, {key: inner})


def test_a_number_in_quotes_is_no_number(tmp_path: Path) -> None:
    said = refusal(tmp_path, {"pieces": {"column": "text", "max_chars": "4"}})
    assert said == "task mine: metadata.pieces.max_chars: Input should be a valid integer, but got '4'"


def test_other_keys_of_lm_evals_own_tasks_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_task(tmp_path, CHOICE | {"metadata": {"version": 1, "canonical_task": "other", "num_samples": 40}})
    monkeypatch.setattr("harness.tasks.group.index", lambda: Index({"mine": path}))
    task = find_task("mine", ())
    assert task.notes[-1] == "metadata that the harness does not read: canonical_task, num_samples"
    assert task.metadata == TaskMetadata(version=1)


def test_the_shipped_tasks_are_accepted_and_keep_their_fingerprints() -> None:
    """Records name tasks by these: one that changes makes every trial of its task run again."""
    pinned = {
        "my_task": "a8d39e303f8845b085aa",
        "tb_addition": "753e4cd530f0dad7bd1f",
        "tb_copy": "b5c0a89a7f24f4bf1d87",
        "tb_facts": "357b3f58787b573e5666",
        "tb_instruct": "3ad15f51f52f4a8db439",
        "tb_newfacts": "0da416595dc52fd5d2c8",
        "tb_reverse": "e764b78c4327ef1a0907",
        "tb_sentiment": "cbf9f45646bb63c44d97",
        "tb_sort": "2a5ba9ac382809fa16bb",
        "tb_stories": "8f119aff40eeb18f8bf8",
    }
    folders = task_folders(Path(__file__).parents[2])
    assert set(task_names(folders[1:])) < set(pinned)
    assert {name: find_task(name, folders).ref.fingerprint for name in pinned} == pinned


def test_facts_name_the_columns_of_training_rows(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE)
    assert task_facts(find_task("mine", (tmp_path,))) == TaskFacts(
        "multiple_choice", ("prompt", "completion", "wrong"), TaskMetadata()
    )
    write_task(tmp_path, CHOICE | {"metadata": {"preference": {"chosen": "text", "rejected": "text"}}})
    assert task_facts(find_task("mine", (tmp_path,))).columns == ("prompt", "completion", "rejected", "wrong")


def test_the_schema_is_made_from_the_type() -> None:
    schema = task_json_schema()
    metadata = schema["properties"]["metadata"]
    assert set(metadata["properties"]) == set(GOOD)
    assert metadata["additionalProperties"] is False
    assert schema["$defs"]["Pieces"]["required"] == ["column", "max_chars"]
