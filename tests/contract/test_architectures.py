"""A few methods of each sort on tiny models of many architectures, tied and untied, with what `checks` asks of all."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.axes.contract import Situation
from harness.models.base_model import resolve_model
from harness.models.facts import model_facts
from harness.plugins import load
from harness.trial.model_folder import save_model
from tests.contract import checks
from tests.tiny import logits, save_kind

KINDS = {
    "llama": {"tie_word_embeddings": True},
    "llama untied": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": {},
    "qwen3": {},
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt_neox": {"attention_dropout": 0.0, "hidden_dropout": 0.0},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 16,
        "mamba_chunk_size": 16,
    },
    "mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 64},
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "olmoe": {},
    "gpt_oss": {},
    "llama4_text": {},
    "phi": {},
}
"""By model type, what differs from `USUAL`: windows shorter than the rows, caps that are felt."""
METHODS = ("full", "lora", "ia3")
EVERY = (
    checks.two_steps_have_a_finite_loss_and_move_only_what_is_declared,
    checks.the_loss_is_that_of_the_models_own_logits,
    checks.adapters_off_is_the_base,
    checks.a_shared_base_is_left_as_it_is,
    checks.a_row_depends_on_nothing_but_what_comes_before_in_it,
    checks.it_is_scored_as_its_logits_say,
    checks.merged_is_unmerged_and_the_deltas_say_what_moved,
    checks.the_reach_is_what_was_planned,
)


@pytest.mark.parametrize("kind", KINDS)
def test_architecture(kind, tmp_path):
    """One test for each, so that an architecture that is broken is one failure, with every check that it fails."""
    folder = save_kind(tmp_path / "base", kind.split()[0], **KINDS[kind])
    situation = Situation(model=model_facts(resolve_model(str(folder))))
    failed = []
    for name in METHODS:
        if load("methods", name)().skip(situation):
            continue
        case = checks.build(name, kind, folder)
        failed += [f"{name}: {failure}" for failure in checks.failures(case, EVERY)]
        save_model(tmp_path / name, case.learner, resolve_model(str(folder)))
        reloaded = logits(AutoModelForCausalLM.from_pretrained(tmp_path / name))
        if not torch.allclose(reloaded, logits(case.model), atol=1e-4, rtol=0):
            failed.append(f"{name}: saved is not what was scored")
    assert not failed, "\n".join(failed)
