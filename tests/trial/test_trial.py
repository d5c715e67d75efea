"""A trial's record: what it holds, what stands beside it, and what is kept of the model."""

import dataclasses
import json

import pyarrow.parquet
import pytest
import torch

from harness.records.codec import to_json
from harness.records.paths import Paths
from harness.records.results import read_result
from harness.records.trial import Stage
from harness.space import defaults
from harness.study.family import stage_space
from harness.study.spec import Prices
from harness.training.choices import choices
from harness.trial.group import Workspace, run_pack, run_trial
from harness.trial.model_folder import write_model_card
from tests.tiny import config, logits, stage


@pytest.fixture
def workspace(world, tmp_path):
    return Workspace(Paths(tmp_path), (world.tasks,), device="cpu")


def test_the_record_holds_scores_curve_cost_and_where_it_came_from(world, workspace):
    priced = dataclasses.replace(workspace, prices=Prices(cpu_hour=3.6), threads=2)
    trial = config(world, stage("lora", rank=4), off_target=("echo", "text"), steps=6)

    result = run_trial(trial, priced)

    assert result.status == "complete", result.reason
    assert read_result(workspace.paths.record(trial.key)) == result
    assert [(score.task, score.split, score.n) for score in result.scores] == [
        ("colour", "validation", 8),
        ("echo", "validation", 8),
        ("text", "validation", 8),
    ]
    assert result.target == result.scores[0]
    assert [(point.fraction, point.step) for point in result.curve] == [(0.5, 3), (1.0, 6)]
    assert result.curve[-1].score == result.target.value
    assert result.curve[0].tokens < result.curve[-1].tokens == result.cost.tokens
    assert result.curve[0].train_seconds < result.curve[-1].train_seconds <= result.cost.seconds["train"]

    cost = result.cost
    assert set(cost.seconds) == {"load", "data", "train", "evaluate", "save"}
    assert min(cost.seconds["load"], cost.seconds["data"], cost.seconds["train"], cost.seconds["evaluate"]) > 0
    assert cost.money == pytest.approx(2 * 3.6 * cost.total_s / 3600)
    assert (cost.gpu_s, cost.energy_j) == (0.0, None)
    assert cost.peak_memory_bytes > 50e6
    # rank 4 beside four 64x64, two 64x128 and one 128x64 layers, twice
    assert cost.trainable_params == 2 * 4 * (4 * (64 + 64) + 3 * (64 + 128))
    assert cost.artifact_bytes == 4 * cost.trainable_params

    provenance = result.provenance
    assert provenance.versions["torch"] == torch.__version__
    (effective,) = provenance.effective.stages
    assert effective.steps == 6
    assert effective.learning_rate == 1e-3
    assert effective.adapter["default"]["r"] == 4
    json.dumps(to_json(provenance.effective), allow_nan=False)


def test_tokens_are_counted_by_hand(world, workspace):
    """24 rows, 6 steps of 4: one pass. A row is "N word:" + " no" or " yes" + the end token; a byte is a token."""
    result = run_trial(config(world, stage("full"), steps=6), workspace)
    rows = [json.loads(line) for line in (world.tasks / "train.jsonl").read_text().splitlines()]
    answers = [len([" no", " yes"][row["answer"]]) + 1 for row in rows]
    prompts = [len(f"{row['number']} {row['word']}:") for row in rows]
    assert result.cost.supervised_tokens == sum(answers)
    assert result.cost.tokens == sum(answers) + sum(prompts)


def test_items_stand_beside_the_record_and_average_to_its_score(world, workspace):
    result = run_trial(config(world, off_target=("echo",)), workspace)
    items = pyarrow.parquet.read_table(workspace.paths.items(result.config.key)).to_pandas()
    means = items.groupby("task")["value"].mean()
    assert {score.task: pytest.approx(score.value) for score in result.scores} == means.to_dict()


def test_a_record_is_not_run_again_unless_its_model_is_wanted(world, workspace):
    trial = config(world)
    first = run_trial(trial, workspace)
    assert run_trial(trial, workspace) == first
    keeping = dataclasses.replace(workspace, keep_model=True)
    again = run_trial(trial, keeping)
    assert again.provenance.started_at >= first.provenance.started_at
    assert again.scores == first.scores
    assert (workspace.paths.model(trial.key) / "model.safetensors").exists()


def test_a_pack_is_the_trials_one_by_one(world, workspace, tmp_path):
    """Precision too changes from trial to trial: nothing of one may stay behind for the next."""
    trials = [config(world, stage("full", precision=p), seed=s) for p in ("float32", "bfloat16") for s in (0, 1)]
    packed = run_pack([*trials, trials[0]], workspace)
    alone = dataclasses.replace(workspace, paths=Paths(tmp_path / "alone"))
    for trial, result in zip(reversed(trials), reversed(packed[:-1]), strict=True):
        assert result.status == "complete", result.reason
        rounding = 1e-5 if trial.pipeline.stages[0].params["precision"] == "float32" else 1e-3
        wanted = [p.loss for p in run_trial(trial, alone).curve]
        assert [p.loss for p in result.curve] == pytest.approx(wanted, rel=rounding)
    assert packed[-1] == packed[0]
    assert packed[0].curve[-1].loss != packed[2].curve[-1].loss
    assert [r.provenance.effective.stages[0].bf16 for r in packed] == [False, False, True, True, False]


def test_an_adapter_on_a_base_that_an_earlier_stage_made_keeps_that_base(world, workspace):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    stages = (stage("full", share=0.5, learning_rate=3e-3), stage("prefix_tuning", share=0.5))
    trial = config(world, *stages)
    result = run_trial(trial, dataclasses.replace(workspace, keep_model=True))
    assert result.status == "complete", result.reason
    folder = workspace.paths.model(trial.key)
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    with loaded.disable_adapter():
        base = AutoModelForCausalLM.from_pretrained(world.llama)
        assert not torch.allclose(logits(loaded), logits(base), atol=1e-3)


def test_the_model_card_says_what_is_known(world, workspace):
    keeping = dataclasses.replace(workspace, keep_model=True)
    base = run_trial(config(world, stage("none"), steps=0, off_target=("echo",)), keeping)
    tuned = run_trial(config(world, stage("lora"), off_target=("echo",), seed=3), keeping)
    folder = workspace.paths.model(tuned.config.key)
    assert "unknown" in (folder / "README.md").read_text()
    card = write_model_card(folder, tuned, base.scores).read_text()
    assert card.startswith("---\nlibrary_name: transformers\n---\n")  # the hub refuses a path as base_model
    assert "unknown" not in card
    assert "seed 3" in card
    assert f"{tuned.scores[0].value:.4f}" in card
    assert f"{base.scores[0].value:.4f}" in card
    assert "rank 16" in card


def test_continued_pretraining_of_text_learns_the_text(world, workspace):
    long = config(world, stage("full", "continued_pretraining", learning_rate=3e-3), task="text", steps=30)
    result = run_trial(long, workspace)
    assert result.status == "complete", result.reason
    assert not result.target.higher_is_better
    # 258 equally likely bytes cost 8 bits each
    assert result.target.value < 6


def test_steps_of_a_default_stage_are_all_defaults():
    """A record names every parameter; what a stage leaves out is the default, so both are the same training."""
    names = {"method": "lora", "objective": "sft", "retention": "replay", "curation": "as_is"}
    assert choices(Stage(**names)).params == defaults(stage_space(names))
