"""Sampled answers and programs on data that nobody here made, with a real small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.metrics._sandbox import why_no_sandbox
from harness.tasks.file import ALLOW_CODE, file_sha256
from harness.tasks.lm_eval_task import lm_eval_task
from harness.tasks.task import find_task, task_folders
from harness.tasks.training_rows import training_rows
from tests.scoring import evaluate

pytestmark = pytest.mark.shared
ROOT = Path(__file__).parents[2]
FOLDERS = task_folders(ROOT)


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "checkpoints" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


@pytest.mark.thorough
def test_votes_on_school_mathematics(stories: Any) -> None:
    """A story model knows none of it; the right number, voted for, would count, and its row ends with it."""
    task = find_task("gsm8k_votes", FOLDERS)
    row = training_rows(task)[0]
    assert row.completion.endswith(f"\n#### {row.doc['answer']}")
    found = evaluate(*stories, task, "test", 2)
    assert found.score.value == 0.0
    assert {item.prediction for item in found.items} == {"[invalid]"}
    built = lm_eval_task(task, "test", 2, None)
    for doc in built.test_docs():
        assert built.process_results(doc, [doc["answer"]]) == {"exact_match": 1.0}
        assert built.process_results(doc, ["1" + doc["answer"]]) == {"exact_match": 0.0}


@pytest.mark.thorough
def test_programs_of_a_story_model_do_not_pass(stories: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := why_no_sandbox():
        pytest.skip(reason)
    monkeypatch.setenv(ALLOW_CODE, file_sha256(ROOT / "studies" / "tasks" / "humaneval_pass1.yaml"))
    task = find_task("humaneval_pass1", FOLDERS)
    found = evaluate(*stories, task, "test", 2)
    assert (found.score.value, found.score.n) == (0.0, 2)
    built = lm_eval_task(task, "test", 2, None)
    for doc in built.test_docs():
        samples = [doc["canonical_solution"]] * 2 + ["    return None\n"] * 3
        assert built.process_results(doc, [samples]) == {"pass_at_k": pytest.approx(2 / 5)}
