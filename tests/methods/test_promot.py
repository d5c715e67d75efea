"""ProMoT: the prompt moves, then the weights; the task is asked with the prompt, every other task without it."""

import json
import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from harness.methods.base import Method
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.plugins import load, names
from harness.records.paths import Paths
from harness.trial.group import Workspace, run_trial
from harness.trial.model_folder import load_tuned, save_model
from harness.trial.packs import alone_because
from tests.tiny import attached, config, logits, stage, train

PROMPT = "prompt_encoder.default.embedding.weight"
STEADY = {"schedule": "constant", "warmup_share": 0.0, "learning_rate": 2e-3, "weight_decay": 0.1}


@pytest.fixture
def workspace(world, tmp_path):
    return Workspace(Paths(tmp_path), (world.tasks,), device="cpu", keep_model=True)


def bits_per_byte(world, model, prompt=None):
    """Of the validation rows of the task `text`, from whole logits; every byte is a token, and one comes before them."""
    rows = [json.loads(line)["text"] for line in (world.tasks / "validation.jsonl").read_text().splitlines()]
    tokenizer, nats = load_tokenizer(resolve_model(str(world.llama))), 0.0
    for row in rows:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(row, add_special_tokens=False)["input_ids"]]])
        assert ids.shape[1] == 1 + len(row)
        given = model.get_input_embeddings()(ids)
        if prompt is not None:
            given = torch.cat([prompt[None], given], dim=1)
        with torch.no_grad():
            said = model(inputs_embeds=given).logits[0, -ids.shape[1] :].double().log_softmax(-1)
        nats -= float(said[:-1].gather(1, ids[0, 1:, None]).sum())
    return nats / sum(map(len, rows)) / math.log(2)


def kept(workspace, trial):
    """What a user gets: weights that plain transformers loads, and the prompt as PEFT wrote it."""
    folder = workspace.paths.model(trial.key)
    plain = load_model(resolve_model(str(folder / "model")), {}, "cpu").eval()
    return plain, load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


@pytest.mark.parametrize(("share", "prompt_steps"), [(0.5, 3), (0.05, 1), (0.95, 5)])
def test_the_prompt_moves_first_and_then_the_weights(share, prompt_steps, world):
    ready, notes = attached(world.llama, stage("promot", prompt_share=share, **STEADY), 6)
    values = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    method, after, seen = ready.choices.method, ready.choices.method.after_step, []

    def look(model, step):
        after(model, step)
        seen.append({name for name, p in model.named_parameters() if not torch.equal(p, values[name])})
        values.update({name: p.detach().clone() for name, p in model.named_parameters()})

    method.after_step = look
    train(ready)
    weights = set(values) - {PROMPT}
    assert len(weights) == 1 + 2 * 9 + 1  # embeddings, two layers of nine, the last norm
    assert seen == [{PROMPT}] * prompt_steps + [weights] * (6 - prompt_steps)
    assert notes == [f"the prompt trained in the first {prompt_steps} of 6 steps, the weights in the rest"]


def test_each_phase_has_its_own_rate(world):
    """Adam's first step moves every number with a gradient by the rate, where nothing decays."""
    ready, _ = attached(
        world.llama, stage("promot", prompt_rate_ratio=20.0, **STEADY | {"weight_decay": 0.0, "learning_rate": 1e-3}), 2
    )
    before = {name: p.detach().clone() for name, p in ready.model.named_parameters()}
    train(ready)
    moved = {name: (p - before[name]).abs().max().item() for name, p in ready.model.named_parameters()}
    assert moved.pop(PROMPT) == pytest.approx(20e-3, rel=1e-2)
    assert max(moved.values()) == pytest.approx(1e-3, rel=1e-2)


def test_a_resumed_rung_is_the_straight_run(world, tmp_path):
    """Stopped in the first phase, at the switch, or in the second."""

    def weights(folder, *fidelities):
        work = Workspace(Paths(folder), (world.tasks,), device="cpu", keep_checkpoint=True, keep_model=True)
        trial = config(world, stage("promot", **STEADY | {"schedule": "cosine"}), steps=10)
        for before, fidelity in pairwise([None, *fidelities]):
            result = run_trial(trial.at(fidelity), work)
            assert result.status == "complete", result.reason
            inherited = result.provenance.effective.inherited
            assert (inherited and inherited.key) == (before and trial.at(before).key)  # the highest rung below it
        model = work.paths.model(trial.key)
        return load_file(model / "model" / "model.safetensors") | load_file(model / "adapter_model.safetensors")

    straight, resumed = weights(tmp_path / "straight", 1.0), weights(tmp_path / "resumed", 0.2, 0.5, 0.8, 1.0)
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def test_the_task_is_scored_with_the_prompt(world, workspace):
    trial = config(world, stage("promot", virtual_tokens=5, **STEADY), task="text", off_target=("colour",))
    result = run_trial(trial, workspace)
    assert result.status == "complete", result.reason
    model, prompt = kept(workspace, trial)
    assert prompt.shape == (5, 64)
    with_it, without = bits_per_byte(world, model, prompt), bits_per_byte(world, model)
    assert result.target.value == pytest.approx(with_it, abs=1e-4)
    assert result.curve[-1].score == result.target.value
    assert abs(with_it - without) > 0.01


def test_other_tasks_are_scored_without_the_prompt(world, workspace):
    trial = config(world, stage("promot", virtual_tokens=5, **STEADY), off_target=("echo", "text"))
    result = run_trial(trial, workspace)
    assert result.status == "complete", result.reason
    model, prompt = kept(workspace, trial)
    with_it, without = bits_per_byte(world, model, prompt), bits_per_byte(world, model)
    assert result.scores[2].task == "text"
    assert result.scores[2].value == pytest.approx(without, abs=1e-4)
    assert abs(with_it - without) > 0.01


def test_before_the_first_step_other_tasks_are_asked_of_the_base(world, workspace):
    base = load_model(resolve_model(str(world.llama)), {}, "cpu")
    ready, _ = attached(world.llama, stage("promot"), 4)
    with ready.choices.method.elsewhere(ready.model) as other:
        assert torch.equal(logits(other), logits(base))
    assert not torch.allclose(logits(ready.model), logits(base), atol=1e-3)
    # a trial of no steps attaches nothing
    own, none = (config(world, stage(name), steps=0, off_target=("echo", "text")) for name in ("promot", "none"))
    assert run_trial(own, workspace).scores == run_trial(none, workspace).scores


def test_weights_that_have_not_moved_score_as_the_base_off_target(world, workspace):
    """One step of two is the prompt's: what other tasks are asked of is still the base, bit for bit."""
    trial = config(world, stage("promot", **STEADY), steps=2, fidelity=0.5, off_target=("echo", "text"))
    own = run_trial(trial, workspace)
    base = run_trial(config(world, stage("none"), steps=0, off_target=("echo", "text")), workspace)
    assert own.cost.tokens > 0
    assert own.scores[1:] == base.scores[1:]


def test_what_is_kept_answers_with_the_prompt_and_without(world, tmp_path):
    ready, _ = attached(world.gpt2, stage("promot", **STEADY), 4)
    train(ready)
    save_model(tmp_path / "kept", ready, resolve_model(str(world.gpt2)))
    torch.testing.assert_close(logits(load_tuned(tmp_path / "kept")), logits(ready.model), atol=1e-5, rtol=0)
    plain = load_model(resolve_model(str(tmp_path / "kept" / "model")), {}, "cpu")
    with ready.choices.method.elsewhere(ready.model) as other:
        torch.testing.assert_close(logits(plain), logits(other), atol=1e-5, rtol=0)


def test_whoever_answers_other_tasks_with_another_model_runs_alone(world):
    own = [name for name in names("methods") if load("methods", name).elsewhere is not Method.elsewhere]
    assert "promot" in own
    assert all(alone_because(config(world, stage(name))) for name in own)
