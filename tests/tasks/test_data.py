"""Training rows are what lm-eval scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.errors import SpecError
from harness.tasks.task import find_task
from harness.tasks.training_rows import check_task, training_rows

from .writing import CHOICE, GENERATE, ROLLING, ROWS, write_task

NUMBERED = [{"text": f"word{i}", "label": i % 2, "answer": f"answer{i}", "start": "So"} for i in range(40)]
TASKS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "choices, label as text": (CHOICE, ROWS),
    "choices, label as index": (CHOICE, NUMBERED),
    "choices, label by template": (CHOICE | {"doc_to_target": "{{['no', 'yes'].index(label)}}"}, ROWS),
    "choices, other delimiter and description": (
        CHOICE | {"target_delimiter": "\n", "description": "Decide.\n\n"},
        ROWS,
    ),
    "choices before the text": (
        CHOICE | {"doc_to_text": "{{label}}", "doc_to_target": "text", "doc_to_choice": ["a is", "b is"]},
        NUMBERED,
    ),
    "log-likelihood": (
        CHOICE | {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": " {{label}}"},
        ROWS,
    ),
    "plain text": (ROLLING, ROWS),
}


def lm_eval_own(folder: Path, config: dict[str, Any], split: str) -> Any:
    """The task as lm-eval itself loads it from the file, scoring the given split."""
    from lm_eval.tasks import TaskManager

    own = dict(config) | {"task": "own", "test_split": split, "training_split": None}
    own["dataset_kwargs"] = {
        "data_files": {name: str(folder / f"{name}.jsonl") for name in ("train", "test")},
        "cache_dir": str(folder / "cache"),
    }
    (folder / "own").mkdir(exist_ok=True)
    path = folder / "own" / "own.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in own.items() if value is not None}))
    return TaskManager(include_path=str(path.parent), include_defaults=False).load("own")["tasks"]["own"]


@pytest.mark.parametrize("case", TASKS)
def test_training_rows_are_the_strings_that_lm_eval_scores(tmp_path: Path, case: str) -> None:
    config, rows = TASKS[case]
    config = config | {"validation_split": "test", "test_split": None}
    write_task(tmp_path, config, train=rows[:30], test=rows[30:])
    ours = {row.doc["text"]: row for row in training_rows(find_task("mine", (tmp_path,)))}
    theirs = lm_eval_own(tmp_path, config | {"validation_split": None}, "train")
    theirs.build_all_requests()
    compared = 0
    for request in theirs.instances:
        row = ours.get(request.doc["text"])
        if row is None:  # held out for validation
            continue
        strings = request.args if len(request.args) == 2 else ("", *request.args)
        right = request.doc["label"] in (request.idx, config["doc_to_choice"] and config["doc_to_choice"][request.idx])
        if config["output_type"] != "multiple_choice" or right:
            assert (row.prompt, row.completion) == strings
            compared += 1
    assert compared == len(ours) == 27


def test_rows_of_choices_know_the_wrong_ones(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"doc_to_choice": ["no", "yes", "maybe"]}, train=ROWS[:30], test=ROWS[30:])
    rows = training_rows(find_task("mine", (tmp_path,)))
    assert {(row.completion, *row.wrong) for row in rows} == {
        (" no", " yes", " maybe"),
        (" yes", " no", " maybe"),
    }


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"target_delimiter": ""},
        {"description": "Answer.\n"},
        {"gen_prefix": "So"},
        {"gen_prefix": "{{start}} "},
        {"doc_to_target": "label"},
    ],
    ids=str,
)
def test_generated_answers_are_those_of_lm_evals_examples(tmp_path: Path, extra: dict[str, Any]) -> None:
    """lm-eval never scores the right answer of a generation; it shows it in examples."""
    config = GENERATE | {"doc_to_target": "answer"} | extra
    write_task(tmp_path, config, train=NUMBERED[:30], test=NUMBERED[30:])
    theirs = lm_eval_own(tmp_path, config, "train")
    theirs.build_all_requests()
    prompts = {request.doc["text"]: request.args[0] for request in theirs.instances}
    for row in training_rows(find_task("mine", (tmp_path,))):
        assert row.prompt == prompts[row.doc["text"]]
        theirs.sampler.df = [row.doc]
        example = theirs.build_qa_turn(
            q=theirs.doc_to_text(row.doc),
            a=str(theirs.doc_to_target(row.doc)),
            gen_prefix=theirs.doc_to_prefix(row.doc),
            tgt_delim=theirs.config.target_delimiter,
            few_delim="",
        )
        described = extra.get("description", "") + "".join(message.to_text() for message in example)
        assert row.prompt + row.completion == described


def test_several_right_answers_train_on_the_first(tmp_path: Path) -> None:
    rows = [row | {"answers": [f"first{i}", f"second{i}"]} for i, row in enumerate(ROWS)]
    write_task(tmp_path, GENERATE | {"doc_to_target": "answers"}, train=rows[:30], test=rows[30:])
    completions = {row.completion for row in training_rows(find_task("mine", (tmp_path,)))}
    assert completions <= {f" first{i}" for i in range(30)}


def test_preferences_give_chosen_and_rejected(tmp_path: Path) -> None:
    rows = [row | {"good": f"good{i}", "bad": f"bad{i}"} for i, row in enumerate(ROWS)]
    columns = {"metadata": {"preference": {"chosen": "good", "rejected": "bad"}}}
    write_task(tmp_path, GENERATE | {"doc_to_target": "good"} | columns, train=rows[:30], test=rows[30:])
    row = training_rows(find_task("mine", (tmp_path,)))[0]
    assert row.completion == " " + row.doc["good"]
    assert row.rejected == " " + row.doc["bad"]
    columns["metadata"]["preference"]["rejected"] = "bda"
    write_task(tmp_path, GENERATE | {"doc_to_target": "good"} | columns, train=rows[:30], test=rows[30:])
    with pytest.raises(SpecError, match=r"metadata.preference.rejected: .* did you mean 'bad'"):
        training_rows(find_task("mine", (tmp_path,)))


def test_callers_get_lists_of_their_own(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE)
    task = find_task("mine", (tmp_path,))
    training_rows(task).clear()
    assert len(training_rows(task)) == 27


def test_prompts_that_end_in_white_space_are_noted(tmp_path: Path) -> None:
    write_task(tmp_path, CHOICE | {"doc_to_text": "{{text}} "})
    notes = check_task(find_task("mine", (tmp_path,)))
    assert json.dumps(notes).count("end in white space") == 1
