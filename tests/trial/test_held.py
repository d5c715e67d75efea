"""A base in the type of its checkpoint: trained beside in float32, saved as it was scored, and of another key."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harness.cli.advice import Order, train_model
from harness.cost.flops import model_size
from harness.errors import UsageError
from harness.models.base_model import load_model, load_tokenizer, resolve_model
from harness.nn.copies import float32_copy, train_in_float32
from harness.records.paths import Paths
from harness.tasks.task import find_task
from harness.training.choices import choices
from harness.trial.group import Workspace, run_pack, run_trial
from harness.trial.hardware import Measurements
from harness.trial.model_folder import load_tuned, write_model_card
from tests.scoring import evaluate
from tests.tiny import attached, config, logits, stage, train

ROUNDING = 0.03
"""By which logits of about 1 differ where they are computed in bfloat16."""


@pytest.fixture(scope="module")
def half(world, tmp_path_factory):
    folder = shutil.copytree(world.llama, tmp_path_factory.mktemp("half") / "half")
    AutoModelForCausalLM.from_pretrained(world.llama, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def workspace(world, tmp_path):
    return Workspace(Paths(tmp_path), (world.tasks,), device="cpu", keep_model=True)


def test_keys_differ_for_a_checkpoint_in_16_bits_only(world, half):
    whole, of_half = config(world), config(world, model=half)
    assert (whole.pipeline.base_model.dtype, of_half.pipeline.base_model.dtype) == ("", "bfloat16")
    ref = of_half.pipeline.base_model
    unmarked = dataclasses.replace(of_half.pipeline, base_model=dataclasses.replace(ref, dtype=""))
    assert of_half.key != dataclasses.replace(of_half, pipeline=unmarked).key


@pytest.mark.parametrize(
    ("method", "settings", "held"),
    [
        ("lora", {}, torch.bfloat16),
        ("ia3", {}, torch.bfloat16),
        ("prefix_tuning", {}, torch.bfloat16),
        ("adapter_pfeiffer", {}, torch.bfloat16),
        ("lora", {"precision": "float32"}, torch.float32),
        ("full", {}, torch.float32),
        ("pissa", {}, torch.float32),
        ("ln_tuning", {}, torch.float32),
        ("fishmask", {}, torch.float32),
    ],
)
def test_what_is_trained_is_float32_beside_frozen_weights_of_the_checkpoints_type(method, settings, held, half):
    one, _ = attached(half, stage(method, **{"learning_rate": 2e-3, "precision": "bfloat16"} | settings))
    (losses,) = train(one)
    assert all(0 < loss < 20 for loss in losses)
    trained = {p.dtype for p in one.model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in one.model.parameters() if not p.requires_grad}
    assert trained == {torch.float32}
    assert frozen <= {held}
    assert {first.dtype for first, _ in one.moments.values()} == {torch.float32}
    merged = one.plain()
    torch.testing.assert_close(logits(merged).float(), logits(one.model).float(), atol=ROUNDING, rtol=0)


def test_small_updates_are_not_rounded_away_by_merging(half):
    """Updates of a thousandth of a weight are below what bfloat16 can tell apart."""
    one, _ = attached(half, stage("lora", precision="bfloat16"))
    with torch.no_grad():
        for name, parameter in one.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-4)
    layer = one.model.base_model.model.model.layers[0].mlp.up_proj
    wanted = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    assert (layer.get_delta_weight("default").abs() > 0).all()
    merged = one.plain()
    torch.testing.assert_close(merged.model.layers[0].mlp.up_proj.weight, wanted, atol=1e-8, rtol=0)
    assert layer.base_layer.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["loha", "oft", "ia3"])
def test_how_far_weights_moved_is_exact_beside_a_base_in_16_bits(method, half):
    """Moves of a hundred thousandth of a weight, which penalties of retention are made of."""
    moves = {}
    for precision in ("bfloat16", "float32"):
        one, _ = attached(half, stage(method, precision=precision))
        with torch.no_grad():
            for parameter in one.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.linspace(0, 1e-3, parameter.numel()).view_as(parameter))
        moves[precision] = one.choices.method.deltas(one.model)
    assert moves["bfloat16"].keys() == moves["float32"].keys() != set()
    for name, move in moves["float32"].items():
        assert move.abs().max() > 0
        torch.testing.assert_close(moves["bfloat16"][name].float(), move, atol=1e-6, rtol=1e-3)


def test_together_is_alone_on_a_base_in_bfloat16(half, world, workspace, monkeypatch):
    monkeypatch.setattr(Measurements, "computes_in_bf16", lambda *_: True)
    trials = [config(world, stage("lora", rank=rank), model=half) for rank in (4, 8)]
    together = run_pack(trials, dataclasses.replace(workspace, keep_model=False))
    alone = dataclasses.replace(workspace, paths=Paths(workspace.paths.results / "alone"), keep_model=False, together=1)
    for result, single in zip(together, run_pack(trials, alone), strict=True):
        assert result.status == single.status == "complete", result.reason
        assert result.cost.trained_with == 2
        assert result.provenance.effective.stages[0].weights == "bfloat16"
        assert result.provenance.effective.stages[0].bf16
        losses = [[point.loss for point in one.curve] for one in (result, single)]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_machine_that_emulates_bfloat16_holds_the_base_in_float32_and_says_so(half, world, workspace, monkeypatch):
    monkeypatch.setattr(Measurements, "computes_in_bf16", lambda *_: False)
    result = run_trial(config(world, stage("lora"), model=half), workspace)
    assert result.provenance.effective.stages[0].weights == "float32"
    assert any("slow in the bfloat16" in note for note in result.notes)


def test_what_is_saved_is_what_was_scored(half, world, workspace):
    """Full tuning at a rate whose updates bfloat16 would lose: master weights are scored and saved in float32."""
    result = run_trial(config(world, stage("full", learning_rate=1e-6, precision="float32"), model=half), workspace)
    assert result.status == "complete", result.reason
    folder = workspace.paths.model(result.config.key)
    tuned, base = load_tuned(folder), load_model(resolve_model(str(half)), {}, "cpu").float()
    assert tuned.dtype == torch.float32
    name = "model.layers.0.mlp.up_proj.weight"
    moved = tuned.get_parameter(name) - base.get_parameter(name)
    # AdamW's first steps move a weight by about the rate each; the last weights have not moved less than the first.
    assert moved.abs().mean() > 1e-6
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"


def test_the_saved_folder_scores_what_its_card_says(half, world, workspace):
    """Shared case `bfloat16-saved`: full tuning at 1e-5 of a base in bfloat16, whose gain a rounded copy would lose in part."""
    made = config(world, stage("full", learning_rate=1e-5), model=half, task="text", steps=10)
    result = run_trial(made, workspace)
    assert result.status == "complete", result.reason
    (score,), folder = result.scores, workspace.paths.model(result.config.key)
    task = find_task("text", (world.tasks,))
    base, tuned = load_model(resolve_model(str(half)), {}, "cpu").float(), load_tuned(folder).float()
    tokenizer = load_tokenizer(resolve_model(str(folder)))
    before, kept = (evaluate(model, tokenizer, task, score.split, None).score.value for model in (base, tuned))
    assert before - score.value > 1e-3
    assert kept == pytest.approx(score.value, abs=0.02 * (before - score.value))
    (line,) = [one for one in write_model_card(folder, result).read_text().splitlines() if one.startswith("| text |")]
    assert float(line.split("|")[4].split("±")[0]) == pytest.approx(kept, abs=1e-3)


@pytest.mark.parametrize("keeps", ["adapter", "both"])
def test_an_adapter_is_kept_that_plain_peft_loads(keeps, half, world, workspace):
    result = run_trial(config(world, stage("lora"), model=half), dataclasses.replace(workspace, keeps=keeps))
    assert result.status == "complete", result.reason
    folder = workspace.paths.model(result.config.key)
    adapter = folder / "adapter" if keeps == "both" else folder
    assert (adapter / "adapter_model.safetensors").stat().st_size < (half / "model.safetensors").stat().st_size
    script = (
        "import sys, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        "base = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "model = PeftModel.from_pretrained(base, sys.argv[2]).eval()\n"
        "with torch.no_grad():\n"
        "    torch.save(model(input_ids=torch.arange(5, 45).reshape(2, 20)).logits, sys.argv[2] + '/logits.pt')\n"
    )
    tuned = logits(load_tuned(adapter))
    if keeps == "adapter":
        subprocess.run([sys.executable, "-c", script, str(half), str(adapter)], check=True)
        torch.testing.assert_close(torch.load(adapter / "logits.pt").float(), tuned.float(), atol=ROUNDING, rtol=0)
    else:
        torch.testing.assert_close(logits(load_tuned(folder)), tuned.float(), atol=ROUNDING, rtol=0)
    assert not torch.allclose(tuned.float(), logits(load_model(resolve_model(str(half)), {}, "cpu")).float(), atol=1e-3)
    card = write_model_card(folder, result).read_text()
    assert f"library_name: {'peft' if keeps == 'adapter' else 'transformers'}" in card


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"config.json": {"_name_or_path": "owner/model"}}, "owner/model"),
        ({"config.json": {"_name_or_path": "/home/me/model"}}, None),
        ({"README.md": "---\nbase_model: owner/first\nlicense: mit\n---\n"}, "owner/first"),
        ({"README.md": "---\nbase_model: /home/me/model\n---\n"}, None),
        ({}, None),
    ],
)
def test_the_card_of_a_local_base_names_no_path_as_its_base(said, wanted, world, workspace, tmp_path):
    folder = shutil.copytree(world.llama, tmp_path / "base")
    for name, content in said.items():
        path = folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    result = run_trial(config(world, stage("none"), steps=0, model=folder), workspace)
    card = write_model_card(workspace.paths.model(result.config.key), result).read_text()
    named = [line for line in card.split("---")[1].splitlines() if line.startswith("base_model")]
    assert named == ([f"base_model: {wanted}"] if wanted else [])


def test_lora_on_seven_billion_weights_fits_in_16_gigabytes(world):
    """A Llama of 7B on torch's meta device: its bytes as they would be held, gradients and moments in float32."""
    one, _ = attached(world.llama, stage("lora"))
    with torch.device("meta"):
        shape = LlamaConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
        )
        model = LlamaForCausalLM(shape).to(torch.bfloat16)
        model = one.choices.method.attach(model, one.setup)
    train_in_float32(model)
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = model_size(model)
    assert trained.trainable_params == 39_976_960  # rank 16 beside every linear layer
    needed = held + 12 * trained.trainable_params
    assert 13.5e9 < needed < 16e9


def test_a_float32_copy_shares_nothing(half):
    model = load_model(resolve_model(str(half)), {}, "cpu")
    copy = float32_copy(model)
    assert copy.get_input_embeddings().weight is copy.get_output_embeddings().weight
    assert {p.dtype for p in copy.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert choices(stage("lora")).method.unmerged


@pytest.mark.parametrize(
    ("method", "retention", "keep", "said"),
    [
        ("full", "none", "adapter", "PEFT alone cannot put what full trains"),
        ("pissa", "none", "both", "PEFT alone cannot put what pissa trains"),
        ("prefix_tuning", "none", "both", "what prefix_tuning trains cannot be merged"),
        ("lora", "interpolation", "adapter", "retention interpolation changes the merged weights"),
        ("lora", "none", "adapter", None),
        ("prefix_tuning", "none", "adapter", None),
    ],
)
def test_what_cannot_be_kept_apart_is_said_before_anything_is_spent(method, retention, keep, said, world, tmp_path):
    order = Order(
        task=find_task("colour", (world.tasks,)),
        base=resolve_model(str(world.llama)),
        stages=(stage(method, retention=retention),),
        steps=2,
    )
    wanted = {"output": tmp_path / "out", "seed": 0, "keep": keep, "dry_run": True}
    if said is None:
        assert train_model(Paths(tmp_path), order, (world.tasks,), **wanted).result is None
        return
    with pytest.raises(UsageError, match=f"{said}.*leave --keep out"):
        train_model(Paths(tmp_path), order, (world.tasks,), **wanted)
