"""What weights are for, told by names and shapes as checkpoints have them."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.models.base_model import resolve_model
from harness.models.facts import model_facts
from harness.models.parts import expert_weights, part_of, parts_of
from tests.tiny import kind_config, save_kind


@pytest.mark.parametrize(
    ("name", "shape", "part"),
    [
        ("model.embed_tokens.weight", (258, 64), "tables"),
        ("head.weight", (258, 64), "tables"),  # RWKV's, by its vocabulary
        ("transformer.wpe.weight", (96, 64), "tables"),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), "attention"),
        ("transformer.h.0.attn.c_attn.weight", (64, 192), "attention"),
        ("model.layers.0.mlp.up_proj.weight", (96, 64), "mlp"),
        ("model.layers.0.mlp.experts.3.up_proj.weight", (96, 64), "experts"),
        ("model.layers.0.block_sparse_moe.experts.0.w1.weight", (96, 64), "experts"),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 64, 192), "experts"),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (4, 192), "biases"),
        ("backbone.layers.0.mixer.conv1d.weight", (128, 1, 4), "norms"),
        ("rwkv.blocks.0.attention.time_mix_key", (1, 1, 64), "norms"),
        ("model.norm.weight", (64,), "norms"),
        ("model.layers.0.self_attn.q_proj.bias", (64,), "biases"),
    ],
)
def test_a_tensor_is_of_one_part(name, shape, part):
    assert part_of(name, shape, 258) == part


def test_what_a_fused_kernel_takes_is_no_linear_layer():
    """In a state space, whose decays are called A_log; attention has an output projection of the same name."""
    mixer = {"layers.0.mixer.A_log": (128, 16), "layers.0.mixer.out_proj.weight": (64, 128)}
    attention = {"layers.0.self_attn.out_proj.weight": (64, 64)}
    assert parts_of(mixer | attention) == {"attention": 64 * 64, "mlp": 128 * 16, "fused": 64 * 128}


def test_experts_of_a_checkpoint_are_those_of_the_model(tmp_path):
    """Two layers of four experts, three matrices each of 64 by 96; a token passes two of the four."""
    facts = model_facts(resolve_model(str(save_kind(tmp_path / "mixtral", "mixtral"))))
    experts = 2 * 4 * 3 * 64 * 96
    assert facts.parts["experts"] == experts
    assert sum(facts.parts.values()) == facts.parameters
    assert facts.active_parameters == facts.parameters - experts / 2
    key = resolve_model(str(tmp_path / "mixtral")).ref
    assert key.mixture  # its key is not that of trials from before experts were reached
    assert not resolve_model("tiny-1m").ref.mixture
    dense = model_facts(resolve_model("tiny-1m"))
    assert "experts" not in dense.parts
    assert dense.active_parameters == dense.parameters


@pytest.mark.parametrize(
    "kind", ["qwen2_moe", "deepseek_v3", "granitemoe", "llama4_text", "gpt_oss", "phimoe", "jetmoe"]
)
def test_experts_are_found_by_their_shape(kind):
    """Whatever the architecture calls them: in each layer two parameters, of four matrices each."""
    settings = {"n_routed_experts": 4, "first_k_dense_replace": 0} if kind == "deepseek_v3" else {}
    shapes = [p.shape for p in found(kind, **settings).values()]
    assert len(shapes) == (8 if kind == "jetmoe" else 4)  # JetMoE has experts in its attention, too
    assert all(len(shape) == 3 and shape[0] == 4 for shape in shapes)


@pytest.mark.parametrize("kind", ["llama", "mamba", "rwkv"])
def test_dense_models_have_no_experts(kind):
    assert not found(kind)


def found(kind, **settings):
    with torch.device("meta"):
        return expert_weights(AutoModelForCausalLM.from_config(kind_config(kind, **settings)))
