"""Methods that add modules to a block's parts, against formulas written here, and loaded again by another process."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM, RwkvConfig, RwkvForCausalLM

from harness.artifacts import load_tuned, save_model
from harness.errors import SpecError
from harness.layout import Layout
from harness.models import embedded_models, load_model, resolve_model
from harness.plugins import Situation, load
from harness.trial import Workspace, run_trial
from tests.tiny import attached, config, logits, save_tokenizer, stage, trained

SERIAL = ["adapter_pfeiffer", "adapter_houlsby"]
PLAIN = [*SERIAL, "adapter_parallel"]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A model whose feed-forward part is two layers of the block, and one without attention."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
    opt = OPTConfig(
        ffn_dim=64, num_attention_heads=4, word_embed_proj_dim=32, max_position_embeddings=96, dropout=0.0, **sizes
    )
    rwkv = RwkvConfig(attention_hidden_size=32, intermediate_size=64, **sizes)
    found = {}
    for name, model in (("opt", OPTForCausalLM(opt)), ("rwkv", RwkvForCausalLM(rwkv))):
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
        save_tokenizer(found[name])
    return found


def shaken(model):
    """Every trainable number moved, so that nothing is zero by its start."""
    torch.manual_seed(5)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.1 * torch.randn_like(p))


def capture(model, names):
    """Inputs and outputs of parts during a forward pass of the base, and what hooks make of the outputs."""
    seen = {}

    def look(name):
        def hook(module, args, options, output):
            first = args[0] if args else options["hidden_states"]
            seen[name] = (first, output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(look(name), with_kwargs=True) for name in names]
    logits(model)
    for handle in handles:
        handle.remove()
    return seen


def by_hand(state, name, x, activation=torch.relu, scale=1.0):
    """s (f(x D' + d) U' + u) from the tensors alone."""
    down, d, up, u = (state[f"{name}.adapter.{p}"] for p in ("down.weight", "down.bias", "up.weight", "up.bias"))
    return scale * (activation(x @ down.T + d) @ up.T + u)


PARTS = {
    "llama": (["model.layers.{}.self_attn", "model.layers.{}.mlp"]),
    "gpt2": (["transformer.h.{}.attn", "transformer.h.{}.mlp"]),
    "opt": (["model.decoder.layers.{}.self_attn", "model.decoder.layers.{}.fc2"]),
    "rwkv": (["rwkv.blocks.{}.attention", "rwkv.blocks.{}.feed_forward"]),
}


@pytest.mark.parametrize("family", list(PARTS))
@pytest.mark.parametrize("name", PLAIN)
def test_an_adapter_adds_its_formula_to_the_part(name, family, world, others):
    """With adapters off a part gives y for x; with them on, y plus the formula of y, or of x where parallel."""
    folder = others.get(family) or getattr(world, family)
    if reason := load("methods", name)().skip(Situation(model_type=family)):
        pytest.skip(reason)
    ready, _ = attached(folder, stage(name))
    shaken(ready.model)
    state = ready.model.state_dict()
    attention, feed_forward = ([part.format(0)] for part in PARTS[family])
    places = attention + feed_forward if name == "adapter_houlsby" else feed_forward
    # the first block's attention sees the same either way; what lies behind is compared where the input is the same
    on = capture(ready.model, places)
    with ready.choices.method.detached(ready.model):
        off = capture(ready.model, places)
    for place in places:
        x, y = on[place]
        if name == "adapter_parallel":
            torch.testing.assert_close(x, off[place][0])
            wanted = off[place][1] + by_hand(state, place, x, scale=4.0)
        elif place == places[0]:
            wanted = off[place][1] + by_hand(state, place, off[place][1])
        else:  # behind a moved attention: the part itself on what it was given
            part = ready.model.get_submodule(place)
            with ready.choices.method.detached(ready.model), torch.no_grad():
                plain = part(x)
            plain = plain[0] if isinstance(plain, tuple) else plain
            wanted = plain + by_hand(state, place, plain)
        torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)


def test_a_parallel_adapter_cannot_stand_beside_two_layers():
    assert load("methods", "adapter_parallel")().skip(Situation(model_type="opt"))


def test_a_learned_scale_starts_where_it_is_told_and_moves(world):
    ready = trained(
        world.llama, stage("adapter_parallel", adapter_scale=2.0, learned_scale=True, learning_rate=1e-2), 3
    )
    scales = [p.item() for name, p in ready.model.named_parameters() if name.endswith("adapter.scale")]
    assert len(scales) == 2
    assert all(scale != 2.0 and abs(scale - 2.0) < 0.1 for scale in scales)


def test_the_activation_is_the_one_asked_for(world):
    ready, _ = attached(world.llama, stage("adapter_pfeiffer", activation="gelu"))
    shaken(ready.model)
    place = "model.layers.0.mlp"
    (_, y), state = capture(ready.model, [place])[place], ready.model.state_dict()
    with ready.choices.method.detached(ready.model):
        (_, plain) = capture(ready.model, [place])[place]
    wanted = plain + by_hand(state, place, plain, torch.nn.functional.gelu)
    torch.testing.assert_close(y, wanted, atol=1e-5, rtol=1e-5)


# What is kept

CODE = """
import sys, torch
from pathlib import Path
from harness.artifacts import load_tuned
from tests.tiny import logits
torch.save(logits(load_tuned(Path(sys.argv[1]))), sys.argv[2])
"""


@pytest.mark.parametrize("family", ["llama", "rwkv"])
def test_another_process_loads_what_was_kept(family, world, others, tmp_path):
    folder = others.get(family) or getattr(world, family)
    ready = trained(folder, stage("adapter_houlsby", learning_rate=1e-2), 3)
    save_model(tmp_path / "model", ready, resolve_model(str(folder)))
    subprocess.run([sys.executable, "-c", CODE, tmp_path / "model", tmp_path / "logits.pt"], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(ready.model), atol=1e-6, rtol=0)
    base = load_model(resolve_model(str(folder)), {}, "cpu")
    assert not torch.allclose(logits(ready.model), logits(base), atol=1e-3)


def test_only_what_was_trained_is_written(world, tmp_path):
    from safetensors.torch import load_file

    ready = trained(world.llama, stage("adapter_pfeiffer"))
    save_model(tmp_path, ready, resolve_model(str(world.llama)))
    kept = load_file(tmp_path / "tuned.safetensors")
    assert set(kept) == {name for name, p in ready.model.named_parameters() if p.requires_grad}
    assert json.loads((tmp_path / "tuned.json").read_text())["method"] == "adapter_pfeiffer"


@pytest.mark.parametrize("name", ["lora", "prefix_tuning"])
def test_whatever_was_kept_is_loaded_the_same_way(name, world, tmp_path):
    ready = trained(world.gpt2, stage(name, learning_rate=1e-2), 3)
    wanted = logits(ready.model)
    save_model(tmp_path, ready, resolve_model(str(world.gpt2)))
    torch.testing.assert_close(logits(load_tuned(tmp_path)), wanted, atol=1e-5, rtol=0)


def test_an_embedded_base_is_told_by_its_name(tmp_path):
    name = embedded_models()[0]
    base = resolve_model(name)
    ready = trained(base.source, stage("adapter_pfeiffer"), 1)
    save_model(tmp_path, ready, base)
    assert json.loads((tmp_path / "tuned.json").read_text())["base"] == name
    torch.testing.assert_close(logits(load_tuned(tmp_path)), logits(ready.model), atol=1e-6, rtol=0)


def test_a_base_that_an_earlier_stage_made_is_kept_beside_the_adapter(world, tmp_path):
    stages = (stage("full", share=0.5, learning_rate=3e-3), stage("adapter_pfeiffer", share=0.5))
    trial = config(world, *stages)
    work = dataclasses.replace(Workspace(Layout(tmp_path), (world.tasks,), device="cpu"), keep_model=True)
    result = run_trial(trial, work)
    assert result.status == "complete", result.reason
    folder = work.layout.model(trial.key)
    (tmp_path / "moved").parent.mkdir(exist_ok=True)
    folder.rename(tmp_path / "moved")
    tuned = load_tuned(tmp_path / "moved")
    method = load("methods", "adapter_pfeiffer")()
    with method.detached(tuned):
        plain = logits(tuned)
    assert not torch.allclose(plain, logits(AutoModelForCausalLM.from_pretrained(world.llama)), atol=1e-3)


@pytest.mark.parametrize("damage", ["json", "weights"])
def test_what_was_damaged_is_said(damage, world, tmp_path):
    from safetensors.torch import save_file

    ready = trained(world.llama, stage("adapter_pfeiffer"), 1)
    save_model(tmp_path, ready, resolve_model(str(world.llama)))
    if damage == "json":
        (tmp_path / "tuned.json").write_text('{"method": "adapter_pfeiffer"}')
    else:
        save_file({"other": torch.zeros(1)}, tmp_path / "tuned.safetensors")
    with pytest.raises(
        SpecError, match=r"tuned\.json must say how" if damage == "json" else "must hold the 8 parameters"
    ):
        load_tuned(tmp_path)
