"""Whatever a kind of model does to its logits or its masks, the loss is that of a plain pass of transformers."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.nn.attention import quick_attention
from harness.nn.batches import collate
from harness.nn.logits import supervised_nats
from harness.nn.sequences import IGNORED, TokenSequence
from harness.nn.ways import single_precision, ways_of

USUAL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4}
# What each kind does that is not plain, in the names of its configuration.
KINDS = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 8, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 4.0},
    "falcon_h1": {"lm_head_multiplier": 0.3, "head_dim": 8, **MAMBA},
    "recurrent_gemma": {"logits_soft_cap": 3.0, "attention_window_size": 8, "lru_width": 32, "num_hidden_layers": 3},
    "xlstm": {"output_logit_soft_cap": 3.0, "embedding_dim": 32, "num_heads": 4, "num_blocks": 2},
    "doge": {"hidden_dropout": 0.0},
    "mamba": {"state_size": 4},
    "bloom": {"n_head": 4, "n_layer": 2},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "falcon": {"alibi": True, "new_decoder_architecture": False},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "gpt_neox": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "phi": {},
    "olmo2": {},
    "minicpm3": {"num_key_value_heads": 4},
    "nanochat": {},
    "lfm2": {},
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "attn_layer_indices": [1],
    },
}


def made(kind, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **USUAL | KINDS[kind])).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.to(dtype)


def rows_and_batch(lengths=(48, 37, 30, 12), prompt=0.8):
    rng = random.Random(0)
    rows = [tuple(rng.randrange(5, 300) for _ in range(length)) for length in lengths]
    starts = [int(prompt * len(row)) for row in rows]
    sequences = [TokenSequence(r, (IGNORED,) * n + r[n:], n) for r, n in zip(rows, starts, strict=True)]
    return rows, starts, collate([[(sequence,) for sequence in sequences]], 0, "cpu")


def plain_nats(model, rows, starts):
    """Row by row, without padding, from all logits."""
    values = []
    for row, start in zip(rows, starts, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].double()
        values += [-logits.log_softmax(-1)[at - 1, token].item() for at, token in enumerate(row) if at >= start]
    return torch.tensor(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1 << 26, 1200], ids=["at_once", "in_pieces"])
def test_the_loss_is_that_of_a_plain_pass(kind, most, monkeypatch):
    monkeypatch.setattr("harness.nn.logits.LOGITS", most)
    model = made(kind)
    rows, starts, batch = rows_and_batch()
    wanted = plain_nats(model, rows, starts)
    with torch.no_grad(), quick_attention(model, batch):
        nats = supervised_nats(model, batch)[0]
    torch.testing.assert_close(nats, wanted.float(), atol=1e-5, rtol=1e-5)


def test_what_is_not_plain_is_found_by_comparing():
    _, _, batch = rows_and_batch()
    for kind, notes in {
        "llama": [],
        "falcon_h1": ["this model changes logits after its output layer, so they were computed by the whole model"],
        "minicpm3": ["the model's own attention was used: the quicker one gives other log-probabilities for it"],
    }.items():
        model = made(kind)
        with torch.no_grad(), quick_attention(model, batch):
            supervised_nats(model, batch)
        assert ways_of(model).notes == notes, kind


def test_a_kind_of_model_is_tried_once():
    _, _, batch = rows_and_batch()
    models = [made("granite") for _ in range(2)]
    calls = []
    models[1].register_forward_pre_hook(lambda module, arguments: calls.append(1))
    with torch.no_grad():
        for model in models:
            supervised_nats(model, batch)
    assert len(calls) == 1


def test_a_difference_of_masks_is_seen_in_low_precision_too():
    """Doge's own mask, which its attention makes of the one that it is given."""
    model = made("doge", torch.bfloat16)
    rows, starts, batch = rows_and_batch()
    wanted = plain_nats(model, rows, starts)
    with torch.no_grad(), quick_attention(model, batch):
        nats = supervised_nats(model, batch)[0]
    assert (nats - wanted).abs().mean() < 0.1
    assert next(model.parameters()).dtype == torch.bfloat16


def test_single_precision_is_the_same_as_a_model_of_that_type():
    model, wide = made("mixtral", torch.bfloat16), made("mixtral", torch.bfloat16).float()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad(), single_precision(model):
        torch.testing.assert_close(model(input_ids=ids).logits, wide(input_ids=ids).logits, atol=1e-6, rtol=0)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
