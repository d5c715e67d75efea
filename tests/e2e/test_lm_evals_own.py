"""lm-eval's own tasks, by their names, from the plan to their scores: one is trained for, others show what was lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from harness.cli.main import main
from harness.records.paths import Paths
from harness.records.results import find_result
from tests.hub import Hub
from tests.tiny import save_llama

STUDY = {
    "question": "Which?",
    "base_models": ["model"],
    "tasks": ["gsm8k"],
    "off_target": ["leaderboard_gpqa_main"],
    "families": {"lora": {"method": "lora", "params": {"rank": 2, "batch_size": 4}}},
    "budget": {"trials": 1, "steps": 2},
    "search": {"sampler": "random", "limit": 1},
    "confirm": {"finalists": 1, "seeds": 2, "limit": 2},
}


def harness(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    hub = Hub(tmp_path / "hub", monkeypatch)
    split = {
        name: [{"question": f"What is {i} and 1?", "answer": f"It is.\n#### {i + 1}"} for i in numbers]
        for name, numbers in (("train", range(40)), ("test", range(40, 60)))
    }
    hub.add("openai/gsm8k", "main", **split)
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    rows = [{"Question": f"What is {n}?", "Correct Answer": f"it is {n}", **wrong} for n in range(15)]
    hub.add("Idavidrein/gpqa", "gpqa_main", train=rows)
    save_llama(tmp_path / "model", width=16, max_position_embeddings=400)
    (tmp_path / "studies").mkdir()
    return tmp_path


def write(folder: Path, **changes: object) -> None:
    (folder / "studies" / "own.yaml").write_text(yaml.safe_dump(STUDY | changes))


@pytest.mark.thorough
def test_from_the_plan_to_the_scores(laid_out: Path) -> None:
    write(laid_out)
    plan = harness("plan", "own")
    assert "gsm8k: scored without the 5 examples that its prompt may hold elsewhere" in plan
    assert "leaderboard_gpqa_main: its split 'train' is scored, so that nothing is left to train on" in plan
    for command in ("base", "search", "confirm"):
        harness(command, "own", "--quiet", "--runner", "inline")
    places = laid_out.glob("results/trials/*/*/record.json")
    records = [find_result(Paths(laid_out / "results"), path.parent.name) for path in places]
    assert {record.status.value for record in records} == {"complete"}
    tested = [record for record in records if record.config.evaluation.split == "test"]
    assert [sorted(score.task for score in record.scores) for record in tested] == [
        ["gsm8k", "leaderboard_gpqa_main"]
    ] * len(tested)
    assert all(score.n == 2 for record in tested for score in record.scores)


@pytest.mark.parametrize("task", ["gsm8k_cot", "leaderboard_gpqa_main"])
def test_what_has_nothing_to_train_on_is_refused_as_a_task(laid_out: Path, task: str) -> None:
    write(laid_out, tasks=[task], off_target=[])
    assert f"task {task} must have a train split to be used for this" in harness("plan", "own", code=3)
