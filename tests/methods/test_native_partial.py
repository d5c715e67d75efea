"""Methods that train some of the base's own parameters: which of them move, in which step."""

import dataclasses
import re

import pytest
import torch

from harness.axes.contract import Situation
from harness.methods._blocks import KNOWN, blocks, layer_list
from harness.models.base_model import resolve_model
from harness.models.facts import model_facts
from harness.plugins import load
from harness.training.alone import Alone
from tests.tiny import attached, save_gpt2, save_llama, stage, train

STEADY = {"schedule": "constant", "warmup_share": 0.0, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A Llama of five layers."""
    return save_llama(tmp_path_factory.mktemp("deep"), width=32, num_hidden_layers=5)


def movers(folder, one_stage, steps, **options):
    """Names of the parameters that moved, step by step."""
    ready, notes = attached(folder, one_stage, steps, **options)
    seen = []
    method, after = ready.choices.method, ready.choices.method.after_step
    before = {name: value.detach().clone() for name, value in ready.model.named_parameters()}

    def look(model, step):
        after(model, step)
        seen.append({name for name, value in model.named_parameters() if not torch.equal(value, before[name])})
        before.update({name: value.detach().clone() for name, value in model.named_parameters()})

    method.after_step = look
    train(ready)
    return seen, ready, notes


def layers_of(names):
    return {int(match[1]) for name in names if (match := re.match(r"model\.layers\.(\d+)\.", name))}


def test_bitfit_moves_every_bias_and_nothing_else(world):
    (moved, *_), _, _ = movers(world.gpt2, stage("bitfit", **STEADY), 1)
    biases = {
        name for name, _ in attached(world.gpt2, stage("full"))[0].model.named_parameters() if name.endswith("bias")
    }
    # two layers of two norms, attention in and out, feed-forward in and out; and the last norm
    assert len(biases) == 2 * 6 + 1
    assert moved == biases


def test_bitfit_is_refused_where_there_are_no_biases(world):
    def reason(folder):
        return load("methods", "bitfit")().skip(Situation(model=model_facts(resolve_model(str(folder)))))

    assert reason(world.gpt2) is None
    assert reason(world.llama) == "a llama has no biases to train: BEFT adds some"


@pytest.mark.parametrize(("end", "wanted"), [("last", {3, 4}), ("first", {0, 1})])
def test_layer_freezing_moves_the_layers_of_one_end(end, wanted, deep):
    seen, ready, notes = movers(deep, stage("layer_freezing", trained_share=0.4, trained_end=end, **STEADY), 2)
    assert [layers_of(moved) for moved in seen] == [wanted, wanted]
    # nine tensors of a Llama's layer: four of attention, three of the feed-forward part, two norms
    assert all(len(moved) == 2 * 9 for moved in seen)
    assert "2 of 5 layers train" in notes
    declared = {name for name, _ in ready.model.named_parameters() if re.fullmatch(ready.choices.method.trains, name)}
    assert declared == seen[0]


def test_layers_join_from_the_end_inwards(deep):
    """Three layers over six steps: one more after every two."""
    seen, ready, _ = movers(deep, stage("layer_freezing", trained_share=0.6, gradual=True, **STEADY), 6)
    assert [layers_of(moved) for moved in seen] == [{4}, {4}, {3, 4}, {3, 4}, {2, 3, 4}, {2, 3, 4}]
    assert {n for n, p in ready.model.named_parameters() if p.requires_grad} == seen[-1]


def test_lisa_draws_its_layers_anew_every_period(deep):
    seen, _, notes = movers(deep, stage("lisa", active_layers=2, period=3, **STEADY), 12)
    drawn = [layers_of(moved) for moved in seen]
    assert all(len(layers) == 2 for layers in drawn)
    assert all(drawn[step] == drawn[step - step % 3] for step in range(12))
    assert len({tuple(sorted(layers)) for layers in drawn}) > 1
    others = {"model.embed_tokens.weight", "model.norm.weight"}
    assert all(others <= moved for moved in seen)
    assert not notes


def test_lisa_goes_on_as_it_would_have(deep):
    """What rested keeps its moments and its own count of steps when training pauses."""

    def weights(pauses):
        ready, _ = attached(deep, stage("lisa", active_layers=1, period=2, **STEADY | {"schedule": "cosine"}), 8)
        for step in pauses:
            ready = dataclasses.replace(ready, watch=dataclasses.replace(ready.watch, stop_at=step))
            session = Alone(ready)
            session.advance(step - ready.step)
            session.close()
        return [value.detach() for value in ready.model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights([8]), weights([3, 5, 8]), strict=True))


def test_lisa_never_trains_all_layers(world):
    _, ready, notes = movers(world.llama, stage("lisa", active_layers=8), 1)
    assert ready.choices.method.active == 1
    assert notes == ["active_layers was cut from 8 to 1 of 2 layers"]


SIZES = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "n_inner": 64,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "attention_hidden_size": 32,
    "n_embd": 32,
    "rotary_dim": 4,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "attention_types": [[["global"], 2]],
}


@pytest.mark.parametrize("kind", KNOWN)
def test_blocks_are_where_they_are_looked_for(kind):
    """Each part is called once per forward pass of each of the two layers, with the hidden states."""
    from transformers import AutoConfig, AutoModelForCausalLM

    known = AutoConfig.for_model(kind)
    taken = {
        name: value
        for name, value in SIZES.items()
        if hasattr(known, name)
        and name not in type(known).attribute_map
        and not isinstance(getattr(type(known), name, None), property)
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **taken))
    found = blocks(model)
    assert len(found) == 2
    calls = []
    for block in found:
        for name in (block.attention, block.feed_forward[0]):
            model.get_submodule(name).register_forward_hook(
                lambda module, args, options, output, name=name: calls.append(
                    (name, (args[0] if args else options["hidden_states"]).shape[-1])
                ),
                with_kwargs=True,
            )
    model(input_ids=torch.arange(10).view(1, 10))
    assert sorted(calls) == sorted((name, 32) for block in found for name in (block.attention, block.feed_forward[0]))


def test_a_model_of_unknown_parts_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    from harness.errors import SpecError

    model = AutoModelForCausalLM.from_pretrained(save_gpt2(tmp_path))
    model.transformer.h[1].add_module("odd", model.transformer.h[1].mlp)
    del model.transformer.h[1].mlp
    with pytest.raises(SpecError, match="one of a gpt2 holds ln_1, attn, ln_2, odd: use lora"):
        blocks(model)


def test_a_layers_experts_are_no_layers():
    """Two layers of three experts each."""
    from torch.nn import Linear, Module, ModuleDict, ModuleList

    layers = ModuleList(ModuleDict({"experts": ModuleList(Linear(2, 2) for _ in range(3))}) for _ in range(2))
    model = Module()
    model.add_module("layers", layers)
    assert layer_list(model) == ("layers", list(layers))
