"""Methods that add modules to a block's parts, against formulas written here, and loaded again by another process."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM, RwkvConfig, RwkvForCausalLM

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.models.base_model import embedded_models, load_model, resolve_model
from harness.models.facts import ModelFacts
from harness.plugins import load
from harness.records.paths import Paths
from harness.space import Params
from harness.tasks.training_rows import Row
from harness.trial.group import Workspace, run_trial
from harness.trial.model_folder import load_tuned, save_model
from tests.tiny import attached, config, logits, save_tokenizer, stage, train, trained

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
    if reason := load("methods", name)().skip(Situation(model=ModelFacts(model_type=family))):
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
    for name in ("adapter_parallel", "mam", "unipelt"):
        assert "not one module" in load("methods", name)().skip(Situation(model=ModelFacts(model_type="opt")))
        assert load("methods", name)().skip(Situation(model=ModelFacts(model_type="llama"))) is None


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
from harness.trial.model_folder import load_tuned
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
    work = dataclasses.replace(Workspace(Paths(tmp_path), (world.tasks,), device="cpu"), keep_model=True)
    result = run_trial(trial, work)
    assert result.status == "complete", result.reason
    folder = work.paths.model(trial.key)
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


# Prefixes beside modules


def test_mam_is_prefix_tuning_and_a_parallel_adapter(world):
    """With no prefix to speak of it is the adapter; with a silent adapter it is PEFT's prefix tuning."""
    mam = attached(world.llama, stage("mam", virtual_tokens=5))[0].model
    prefix = attached(world.llama, stage("prefix_tuning", virtual_tokens=5))[0].model
    torch.manual_seed(1)
    drawn = torch.randn_like(mam.prompt_encoder.default.embedding.weight)
    for model in (mam, prefix):
        model.prompt_encoder.default.embedding.weight.data.copy_(drawn)
    silent = logits(mam)
    torch.testing.assert_close(silent, logits(prefix))  # adapters start silent
    shaken(mam)
    assert not torch.allclose(logits(mam), silent, atol=1e-2)
    alone = attached(world.llama, stage("adapter_parallel"))[0].model
    own = {name.removeprefix("base_model."): value for name, value in mam.named_parameters()}
    for name, value in alone.named_parameters():
        value.data.copy_(own[name])
    with mam.disable_adapter():  # PEFT's prefix off, the adapters on
        torch.testing.assert_close(logits(mam), logits(alone))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_unipelt_gates_each_of_its_three_parts(family, world):
    """Every gate shut: with its bias at -100 nothing is left but an empty prefix, which takes attention still."""
    ready, _ = attached(getattr(world, family), stage("unipelt", virtual_tokens=4, rank=2))
    model = ready.model
    torch.manual_seed(3)
    for p in model.parameters():
        if p.requires_grad:
            p.data.copy_(0.1 * torch.randn_like(p))
    loud = logits(model)
    empty = attached(getattr(world, family), stage("prefix_tuning", virtual_tokens=4))[0].model
    empty.prompt_encoder.default.embedding.weight.data.zero_()
    gates = [p for name, p in model.named_parameters() if name.endswith(("gate.bias", "prefix_gates"))]
    # LoRA at q and v, or at the one product of both; an adapter; and the prefix of all layers
    assert len(gates) == 2 * (2 if family == "gpt2" else 3) + 1
    shut = {id(gate): gate.detach().clone() for gate in gates}
    for gate in gates:
        gate.data.fill_(-100.0)
    torch.testing.assert_close(logits(model), logits(empty), atol=1e-5, rtol=0)
    for gate in gates:  # each of them opens something
        gate.data.copy_(shut[id(gate)])
        assert not torch.allclose(logits(model), logits(empty), atol=1e-4)
        gate.data.fill_(-100.0)
    assert not torch.allclose(loud, logits(model), atol=1e-3)


def test_unipelts_lora_is_its_formula_and_sees_no_later_token(world):
    ready, _ = attached(world.llama, stage("unipelt", rank=2, alpha=6.0))
    shaken(ready.model)
    layer = ready.model.get_submodule("base_model.model.layers.0.self_attn.q_proj")
    x, own = torch.randn(3, 5, 64), layer.adapter
    gate = 1 / (1 + torch.exp(-(x @ own.gate.weight.T + own.gate.bias)))
    wanted = x @ layer.weight.T + gate * 6.0 / 2 * (x @ own.down.weight.T @ own.up.weight.T)
    torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)
    ids = torch.arange(5, 25).view(1, 20)
    other = ids.clone()
    other[0, 12:] = 3
    with torch.no_grad():
        one, two = (ready.model(input_ids=i, attention_mask=torch.ones_like(i)).logits[0, :12] for i in (ids, other))
    torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["mam", "unipelt"])
def test_a_prefix_and_modules_are_kept_together(name, world, tmp_path):
    ready = trained(world.gpt2, stage(name, learning_rate=1e-2), 3)
    save_model(tmp_path, ready, resolve_model(str(world.gpt2)))
    torch.testing.assert_close(logits(load_tuned(tmp_path)), logits(ready.model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["mam", "unipelt"])
def test_a_prefix_needs_attention(name):
    facts = ModelFacts(model_type="rwkv", heads=0)
    assert "no attention" in load("methods", name)().skip(Situation(model=facts))


# Fusion

TASKS = {
    "vowels": [Row(prompt=f"{i}:", completion=" aeiou") for i in range(8)],
    "digits": [Row(prompt=f"{i}:", completion=" 12345") for i in range(8)],
}
FUSED = {"fusion_sources": "vowels, digits@3f", "source_steps": 100, "source_learning_rate": 1e-2}
NAMED = {"vowels": TASKS["vowels"], "digits@3f": TASKS["digits"]}


@pytest.fixture(scope="module")
def fused(world):
    return attached(world.llama, stage("adapter_fusion", **FUSED), tasks=NAMED)


def nats(model, ready, text):
    ids = torch.tensor([ready.setup.tokenizer("3:" + text)["input_ids"]])
    labels = ids.clone()
    labels[:, :2] = -100
    with torch.no_grad():
        return model(input_ids=ids, labels=labels).loss.item()


def test_each_source_learns_its_own_task_and_not_the_others(world, fused):
    """Alone, an adapter tells its task's text better than the base does, by more than the other one does."""
    ready, notes = fused
    base = load_model(resolve_model(str(world.llama)), {}, "cpu")
    fusions = [module for module in ready.model.modules() if type(module).__name__ == "Fusion"]
    losses = []
    for index in range(2):
        for fusion in fusions:
            fusion.only = index
        losses.append([nats(ready.model, ready, text) for text in (" aeiou", " 12345")])
    for fusion in fusions:
        fusion.only = None
    before = [nats(base, ready, text) for text in (" aeiou", " 12345")]
    assert losses[0][0] < before[0] - 0.5
    assert losses[1][1] < before[1] - 0.5
    assert losses[0][0] < losses[1][0]
    assert losses[1][1] < losses[0][1]
    assert [note.partition(" ended")[0] for note in notes] == ["the adapter of vowels", "the adapter of digits"]


def test_fusion_is_attention_over_what_the_sources_add(fused):
    ready, _ = fused
    shaken(ready.model)
    part, y = ready.model.get_submodule("model.layers.0.mlp"), torch.randn(7, 64)
    own, state = part.adapter, part.adapter.state_dict()

    def source(n):
        down, d, up, u = (state[f"sources.{n}.{p}"] for p in ("down.weight", "down.bias", "up.weight", "up.bias"))
        return torch.relu(y @ down.T + d) @ up.T + u

    query = y @ state["query.weight"].T + state["query.bias"]
    keys = [source(n) @ state["key.weight"].T + state["key.bias"] for n in range(2)]
    scores = torch.stack([(query * key).sum(-1) for key in keys], -1).softmax(-1)
    wanted = sum(scores[:, n : n + 1] * (source(n) @ state["value.weight"].T) for n in range(2))
    torch.testing.assert_close(own(y), wanted, atol=1e-5, rtol=1e-5)


def test_the_stage_trains_the_mixing_alone_and_is_loaded_again(world, tmp_path):
    ready, _ = attached(world.llama, stage("adapter_fusion", **FUSED | {"learning_rate": 1e-2}), tasks=NAMED)
    before = {name: value.detach().clone() for name, value in ready.model.named_parameters()}
    train(ready)
    moved = {name for name, value in ready.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.split(".adapter.")[1].split(".")[0] in ("query", "key", "value") for name in moved)
    save_model(tmp_path, ready, resolve_model(str(world.llama)))
    torch.testing.assert_close(logits(load_tuned(tmp_path)), logits(ready.model), atol=1e-6, rtol=0)


def test_the_penalty_is_the_distance_of_values_to_the_identity(world):
    ready, _ = attached(world.llama, stage("adapter_fusion", **FUSED | {"source_steps": 1}), tasks=NAMED)
    term = ready.choices.method.penalty(ready.model, ready.setup)
    assert term().item() == 0.0
    ready.model.get_submodule("model.layers.0.mlp").adapter.value.weight.data[0, 3] += 2.0
    assert term().item() == pytest.approx(0.01 * 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "two tasks or more"), ("trec", "two tasks or more"), ("trec, trec", "two"), ("a=0.5, b", "without weights")],
)
def test_sources_that_do_not_fit_are_refused(text, said):
    method = load("methods", "adapter_fusion")()
    assert said in method.skip(Situation(model=ModelFacts(model_type="llama"), params=Params({"fusion_sources": text})))
    assert (
        method.skip(Situation(model=ModelFacts(model_type="llama"), params=Params({"fusion_sources": "a, b"}))) is None
    )
