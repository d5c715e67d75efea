"""What every record rests on, on whole trials: zero steps, twins, rungs, stages."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from harness.records.paths import Paths
from harness.trial.group import Workspace, run_trial
from tests.tiny import config, save_gpt2, stage


@pytest.fixture
def workspace(world, tmp_path):
    return Workspace(Paths(tmp_path), (world.tasks,), device="cpu", keep_model=True, keep_checkpoint=True)


def values(result):
    return [(score.task, score.value, score.stderr, score.n) for score in result.scores]


def curve(result):
    return [(p.fraction, p.step, p.tokens, p.loss, p.score) for p in result.curve]


def weights(workspace, result):
    return load_file(workspace.paths.model(result.config.key) / "model.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


KINDS = ["full", "lora", "ia3", "prefix_tuning", "qlora", "lisa", "adapter_pfeiffer", "fishmask", "promot"]
"""One of each way to be attached; without a step, none of them is."""


@pytest.mark.parametrize("method", KINDS)
def test_zero_steps_forget_exactly_nothing(method, world, workspace):
    off_target = ("echo", "text")
    base = run_trial(config(world, stage("none"), steps=0, off_target=off_target), workspace)
    tuned = run_trial(config(world, stage(method), steps=0, off_target=off_target), workspace)
    assert base.status == tuned.status == "complete", (base.reason, tuned.reason)
    assert len(values(base)) == 3
    assert values(tuned) == values(base)
    assert tuned.cost.tokens == 0
    assert tuned.curve == ()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_twins_are_identical_to_the_bit_and_another_seed_is_not(method, world, workspace, tmp_path):
    """Adapters are drawn from the trial's seed too: a twin in a process whose generators stand elsewhere is the same."""
    trial = config(world, stage(method, adapter_dropout=0.1) if method == "lora" else stage(method))
    first = run_trial(trial, workspace)
    torch.rand(17)
    elsewhere = dataclasses.replace(workspace, paths=Paths(tmp_path / "twin"))
    twin = run_trial(trial, elsewhere)
    assert first.status == "complete", first.reason
    assert values(twin) == values(first)
    assert curve(twin) == curve(first)
    assert same(weights(workspace, first), weights(elsewhere, twin))
    other = run_trial(dataclasses.replace(trial, seed=1), workspace)
    assert not same(weights(workspace, first), weights(workspace, other))


@pytest.mark.usefixtures("engine")
def test_scoring_on_the_way_changes_no_training(world, workspace):
    often = run_trial(config(world, stage("lora", adapter_dropout=0.2), fractions=(1 / 3, 2 / 3, 1.0)), workspace)
    once = run_trial(config(world, stage("lora", adapter_dropout=0.2), fractions=(1.0,)), workspace)
    assert [point.step for point in often.curve] == [2, 4, 6]
    assert [point.step for point in once.curve] == [6]
    assert same(weights(workspace, often), weights(workspace, once))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("steps", [9, pytest.param(18, marks=pytest.mark.thorough)])
def test_rungs_add_up_to_the_straight_run(method, steps, world, workspace, tmp_path):
    """Dropout makes the random state matter; 24 rows in batches of 4 put rungs of 9 steps inside a pass and at its end."""
    model = save_gpt2(tmp_path / "dropout", dropout=0.1)
    trial = config(world, stage(method), model=model, steps=steps, fractions=(0.5, 1.0))
    straight = run_trial(trial, workspace)
    assert straight.status == "complete", straight.reason

    climbing = dataclasses.replace(workspace, paths=Paths(tmp_path / "rungs"))
    rungs = [run_trial(trial.at(fidelity), climbing) for fidelity in (1 / 9, 1 / 3)]
    resumed = run_trial(trial, climbing)

    assert [rung.curve[-1].step for rung in rungs] == [steps // 9, steps // 3]
    assert resumed.provenance.effective.inherited.key == rungs[1].config.key
    assert values(resumed) == values(straight)
    assert curve(resumed) == curve(straight)
    assert same(weights(climbing, resumed), weights(workspace, straight))
    # what was spent is spread over the records, and nothing is counted twice
    assert sum(result.cost.tokens for result in (*rungs, resumed)) == straight.cost.tokens
    assert sum(result.cost.flops for result in (*rungs, resumed)) == pytest.approx(straight.cost.flops)


def test_a_pipeline_of_two_stages_starts_the_second_from_the_first(world, workspace):
    stages = (
        stage("lora", "continued_pretraining", share=0.5, data="text", learning_rate=1e-2),
        stage("full", share=0.5, learning_rate=0.0001),
    )
    both = run_trial(config(world, *stages, steps=8, fractions=(0.5, 1.0)), workspace)
    assert both.status == "complete", both.reason
    assert [point.step for point in both.curve] == [4, 8]
    first, second = both.provenance.effective.stages
    assert (first.steps, second.steps) == (4, 4)
    assert first.adapter["default"]["peft_type"].endswith("LORA")
    only_second = run_trial(config(world, stages[1], steps=4), workspace)
    assert not same(weights(workspace, both), weights(workspace, only_second))
    # 3e-3 is what the second stage could move a weight by at most: 4 steps of Adam at 1e-4, and a margin
    base = load_file(world.llama / "model.safetensors")
    alone = weights(workspace, only_second)
    assert max(float((alone[name] - base[name]).abs().max()) for name in base) < 1e-3
    tuned = weights(workspace, both)
    assert max(float((tuned[name] - base[name]).abs().max()) for name in base) > 3e-3
