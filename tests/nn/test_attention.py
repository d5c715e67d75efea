"""The quick ways of a training step on a CPU give what the model's own give."""

from contextlib import nullcontext

import pytest
import torch

from harness.nn.attention import NAME, late_positions, quick_attention
from harness.nn.batches import collate
from harness.nn.logits import supervised_nats
from harness.nn.sequences import IGNORED
from harness.tasks.training_rows import Row
from tests.tiny import attached, save_gpt2, save_llama, stage

LONG = [
    Row(prompt="a long beginning that carries no loss at all, number " + str(n), completion=" end" * (1 + n % 2))
    for n in range(8)
]


def batch_of(one):
    return collate([one.next_examples()], 1, "cpu")


def nats_and_gradients(one, batch, way):
    one.model.zero_grad()
    with way:
        nats = supervised_nats(one.model, batch)
    nats.sum().backward()
    return nats.detach(), {n: p.grad.clone() for n, p in one.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("save", [save_llama, save_gpt2])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_last_layer_cut_short_gives_the_same_loss_and_gradients(save, method, tmp_path):
    one, _ = attached(save(tmp_path), stage(method, batch_size=6), rows=LONG, dtype=torch.float64)
    one.model.train()
    batch = batch_of(one)
    assert late_positions(batch).shape[1] * 3 <= batch.input_ids.shape[1]
    plain = nats_and_gradients(one, batch, nullcontext())
    seen = []
    feed_forward = max((m for m in one.model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)[-1].mlp
    hook = feed_forward.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    quick = nats_and_gradients(one, batch, quick_attention(one.model, batch))
    hook.remove()
    assert seen[0][1] < batch.input_ids.shape[1], "it was not cut short, so nothing was shown"
    torch.testing.assert_close(quick[0], plain[0], atol=1e-6, rtol=0)
    assert quick[1].keys() == plain[1].keys()
    for name in plain[1]:
        torch.testing.assert_close(quick[1][name], plain[1][name], atol=1e-6, rtol=1e-4)


def test_late_positions_are_where_loss_is_taken(world):
    one, _ = attached(world.llama, stage("full", batch_size=3))
    batch = batch_of(one)
    late = late_positions(batch)
    for row, sequence in zip(late, [s for example in one.next_examples() for s in example], strict=True):
        wanted = [index for index, label in enumerate(sequence.labels[1:]) if label != IGNORED]
        assert [at for at in row.tolist() if at < batch.input_ids.shape[1]] == wanted


def test_half_precision_attention_is_torchs_up_to_its_rounding(world):
    one, _ = attached(world.llama, stage("full", batch_size=4), rows=LONG)
    batch = batch_of(one)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = supervised_nats(one.model, batch)
        with quick_attention(one.model):
            assert one.model.config._attn_implementation == NAME
            quick = supervised_nats(one.model, batch)
    assert one.model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(quick, plain, atol=0.05, rtol=0.02)


def test_a_model_that_draws_random_numbers_is_left_alone(tmp_path):
    """Fewer positions would draw others."""
    one, _ = attached(save_gpt2(tmp_path, dropout=0.1), stage("full", batch_size=4), rows=LONG)
    one.model.train()
    batch = batch_of(one)

    def drawn(way):
        torch.manual_seed(3)
        with way, torch.no_grad():
            return supervised_nats(one.model, batch)

    torch.testing.assert_close(drawn(quick_attention(one.model, batch)), drawn(nullcontext()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("save", [save_llama, save_gpt2])
def test_autocast_takes_the_quick_way_where_rotations_leave_float32(save, tmp_path, monkeypatch):
    """A Llama's queries are float32 under autocast; torch's kernel, slow in bfloat16, must not be called for them."""
    one, _ = attached(save(tmp_path), stage("lora", batch_size=6), rows=LONG)
    one.model.train()
    batch = batch_of(one)

    def nats():
        with torch.autocast("cpu", torch.bfloat16):
            return supervised_nats(one.model, batch).detach()

    plain = nats()
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )
    nats()
    assert len(calls) == 2, "the kernel was not seen where it must be called"
    with quick_attention(one.model):
        quick = nats()
    assert len(calls) == 2
    torch.testing.assert_close(quick, plain, atol=0.05, rtol=0)
    assert not torch.equal(quick, nats_in_float32(one.model, batch))


def nats_in_float32(model, batch):
    with torch.no_grad():
        return supervised_nats(model, batch)
