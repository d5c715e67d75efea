"""Replay from named tasks: each has its part of the tokens. Replay of the base's corpus is tested in tests/training."""

import random

import pytest

from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.tasks.training_rows import Row
from harness.trial.group import Workspace, run_trial
from tests.tiny import attached, config, stage


def rows_of(letter, shortest, longest, count=200):
    draw = random.Random(letter)
    return [Row(prompt="q:", completion=letter * draw.randint(shortest, longest)) for _ in range(count)]


@pytest.mark.parametrize("steps", [8, 200])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_named_tasks_make_up_their_shares_of_the_tokens(share, steps, world):
    """Three quarters of the replayed tokens are of one, whose rows are much longer, and a quarter of the other."""
    made = stage("full", retention="replay", replay_share=share, replay_from="long=3,short=1", batch_size=16)
    tasks = {"long": rows_of("l", 40, 70), "short": rows_of("s", 1, 9)}
    one, notes = attached(world.llama, made, steps, rows_of("t", 5, 40, 400), tasks=tasks)
    letters = {name: one.setup.tokenizer(name)["input_ids"][0] for name in "lst"}
    seen = [one.examples[index][0] for index in one.order.flatten()]
    counts = {name: sum(len(s.input_ids) for s in seen if letters[name] in s.input_ids) for name in letters}
    whole = sum(counts.values())
    assert (counts["l"] + counts["s"]) / whole == pytest.approx(share, abs=0.015)
    assert counts["l"] / (counts["l"] + counts["s"]) == pytest.approx(0.75, abs=0.03)
    assert any(note.startswith("replayed share of tokens: 0.") for note in notes)


def test_replayed_rows_keep_their_prompts(world):
    made = stage("full", retention="replay", replay_share=0.5, replay_from="old")
    one, _ = attached(world.llama, made, 8, rows_of("t", 5, 9), tasks={"old": rows_of("o", 5, 9)})
    assert {row.prompt for row in one.rows} == {"q:"}


def test_pairs_may_be_replayed_beside_pairs(tmp_path, world):
    made = stage("lora", "dpo", retention="replay", learning_rate=1e-4, replay_share=0.3, replay_from="manners")
    trial = config(world, made, task="manners", steps=3)
    result = run_trial(trial, Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    assert result.status is TrialStatus.COMPLETE, result.reason
