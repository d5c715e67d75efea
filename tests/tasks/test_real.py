"""The shipped tasks on data that nobody here made, with a real small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.tasks.overlap import task_overlap
from harness.tasks.task import find_task, task_folders
from harness.tasks.training_rows import check_task, training_rows
from tests.scoring import evaluate

pytestmark = pytest.mark.shared
FOLDERS = task_folders(Path(__file__).parents[2])

ROWS = {
    # task: rows of (train, validation, test), from the folders' READMEs; splits made by hash are 10 or 20%
    "rotten_tomatoes": (8530, 1066, 1066),
    "trec": (4907, 545, 500),
    "tinystories_sentences": (1600, 200, 200),
}


@pytest.fixture(scope="module", autouse=True)
def _needs_data(shared_data: Path) -> Path:
    return shared_data


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "checkpoints" / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder), tokenizer


@pytest.mark.parametrize("name", ROWS)
def test_splits_have_the_published_sizes(name: str) -> None:
    task = find_task(name, FOLDERS)
    assert tuple(len(task.split(split)) for split in ("train", "validation", "test")) == ROWS[name]


@pytest.mark.parametrize("name", [*ROWS, "tinyshakespeare", "wikitext2"])
def test_every_row_fits(name: str) -> None:
    task = find_task(name, FOLDERS)
    check_task(task)
    rows = training_rows(task) if "train" in task.parts else []
    assert all(row.completion.strip() for row in rows)
    assert all(found.ngram <= 1 for found in task_overlap(task).values())


@pytest.mark.parametrize("name", ["rotten_tomatoes", "trec"])
def test_prompts_are_short_enough_for_a_small_vocabulary(name: str, stories: Any) -> None:
    tokenizer = stories[1]
    rows = training_rows(find_task(name, FOLDERS))
    longest = max(rows, key=lambda row: len(row.prompt + row.completion))
    assert len(tokenizer(longest.prompt + longest.completion)["input_ids"]) <= 256


def test_a_story_model_knows_stories_better_than_plays_and_articles(stories: Any) -> None:
    """1.27 nats per token were measured on whole stories; single sentences without their story are harder."""
    bits = {
        name: evaluate(*stories, find_task(name, FOLDERS), "validation", 40).score.value
        for name in ("tinystories_sentences", "tinyshakespeare", "wikitext2")
    }
    assert 1.0 < bits["tinystories_sentences"] < 2.5
    assert 3.0 < bits["tinyshakespeare"] < 6.0
    assert 3.0 < bits["wikitext2"] < 6.0


@pytest.mark.parametrize(("name", "chance"), [("rotten_tomatoes", 1 / 2), ("trec", 1 / 6)])
def test_a_story_model_guesses_at_classification(stories: Any, name: str, chance: float) -> None:
    score = evaluate(*stories, find_task(name, FOLDERS), "validation", 100).score
    assert score.chance == pytest.approx(chance, abs=1e-3)
    assert abs(score.value - chance) < 0.2
    assert score.stderr == pytest.approx((score.value * (1 - score.value) / 99) ** 0.5)
