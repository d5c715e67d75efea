"""Bases rounded to few bits: against bitsandbytes' own rounding, and what the papers promise of merging and entropy."""

import pytest
import torch

from harness.axes.contract import Situation
from harness.methods import ir_qlora
from harness.models.base_model import load_model, resolve_model
from harness.models.facts import ModelFacts
from harness.plugins import load
from harness.space import Params, defaults
from harness.trial.process import WarmProcess
from tests.tiny import attached, logits, stage, trained

NAME = "model.layers.0.mlp.up_proj"


def plain(world):
    return load_model(resolve_model(str(world.llama)), {}, "cpu").get_submodule(NAME).weight.detach()


def rounded(world, name, **params):
    one, _ = attached(world.llama, stage(name, **params))
    return one.model.get_submodule("base_model.model." + NAME).base_layer.weight.detach()


def test_ir_qlora_without_its_shifts_rounds_as_bitsandbytes_does(world):
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(plain(world), blocksize=64, quant_type="nf4")
    found = rounded(world, "ir_qlora", calibrated=False)
    torch.testing.assert_close(found, dequantize_4bit(packed, state), atol=1e-6, rtol=0)


def test_its_shifts_raise_the_entropy_of_every_blocks_codes(world):
    """Over no shift from the median; and the information left in the base is more than without any."""
    blocks = plain(world).reshape(-1, 64)
    method, params = load("methods", "ir_qlora")(), Params(calibrated=True, shift_reach=0.5, shift_steps=20)
    middle = blocks.median(1, keepdim=True).values
    unshifted = ir_qlora._entropy(ir_qlora._codes(blocks - middle)[0])

    def information(rows):
        """Of the values that a block has left."""
        shares = [torch.unique(row, return_counts=True)[1] / 64 for row in rows.reshape(-1, 64)]
        return torch.tensor([float(torch.special.entr(share).sum()) for share in shares])

    found = information(method.rounded(plain(world).clone(), params))
    assert (found >= unshifted.flatten() - 1e-5).all()
    without = information(method.rounded(plain(world).clone(), Params(params, calibrated=False)))
    assert found.mean() > without.mean() + 0.01


def test_the_entropy_of_codes_by_hand():
    """Half zeros and half ones: ln 2. All the same: 0. Each of 16 four times: ln 16."""
    halves = torch.tensor([0, 1] * 32)
    rows = torch.stack([halves, torch.full((64,), 7), torch.arange(64) % 16])
    assert ir_qlora._entropy(rows).flatten().tolist() == pytest.approx([0.693147, 0.0, 2.772589], abs=1e-5)


def test_shortcuts_average_and_repeat():
    """Four inputs to two outputs: means of pairs. Two inputs to four: both, twice. Four to six: two means, three times."""
    half, third = [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], torch.eye(2)
    assert ir_qlora._shortcut(2, 4).tolist() == half
    assert torch.equal(ir_qlora._shortcut(4, 2), torch.cat([third, third]))
    assert ir_qlora._shortcut(6, 4).tolist() == half * 3


def test_shares_of_the_shortcuts_learn(world):
    one = trained(world.llama, stage("ir_qlora", shift_steps=1), steps=3)
    shares = {name: float(p.detach()) for name, p in one.model.named_parameters() if name.endswith("0.share")}
    assert len(shares) == 28
    assert all(shares[name] for name in shares if "lora_B" in name)


@pytest.mark.parametrize("bits", [2, 4])
def test_qalora_rounds_each_group_to_its_own_even_grid(world, bits):
    groups = rounded(world, "qalora", bits=bits, group=32).unflatten(1, (-1, 32)).flatten(0, 1)
    for row, source in zip(groups, plain(world).unflatten(1, (-1, 32)).flatten(0, 1), strict=True):
        step = (source.max() - source.min()) / (2**bits - 1)
        places = (row - source.min()) / step
        assert torch.allclose(places, places.round(), atol=1e-3)
        assert (row - source).abs().max() <= step / 2 + 1e-6


def test_qalora_merges_into_shifts_of_the_grids(world):
    """All weights of a group move by the same, so that the merged model has as few bits as the base."""
    one = trained(world.llama, stage("qalora", learning_rate=1e-2), steps=3)
    base = one.model.get_submodule("base_model.model." + NAME).base_layer.weight.detach()
    moved = (one.plain().get_submodule(NAME).weight.detach() - base).unflatten(1, (-1, 32))
    assert moved.abs().max() > 1e-3
    assert (moved.amax(2) - moved.amin(2)).max() < 1e-6


def test_qaloras_inner_factor_sees_the_sums_of_groups(world):
    """Algorithm 1 of the paper: the mean of each group times the group's size."""
    one = trained(world.llama, stage("qalora", rank=3, alpha=6.0, group=16, learning_rate=1e-2), steps=3)
    layer = one.model.get_submodule("base_model.model." + NAME)
    inner = layer.lora_A.default.parametrizations.weight.original.detach()
    assert inner.shape == (3, 4)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    sums = torch.stack([x[:, start : start + 16].sum(1) for start in range(0, 64, 16)], 1)
    with torch.no_grad():
        wanted = x @ layer.base_layer.weight.T + 6.0 / 3 * sums @ inner.T @ layer.lora_B.default.weight.T
        torch.testing.assert_close(layer(x), wanted, atol=1e-5, rtol=1e-5)


def test_groups_that_do_not_fill_the_inputs_are_refused():
    facts = ModelFacts(linear_widths=(48, 64))
    assert "[48]" in load("methods", "qalora")().skip(Situation(model=facts, params=Params({"group": 32})))
    assert load("methods", "qalora")().skip(Situation(model=facts, params=Params({"group": 16}))) is None
    assert "[48]" in load("methods", "ir_qlora")().skip(Situation(model=facts))


def test_moments_are_in_eight_bits_where_tensors_are_large(world):
    """Rank 64 on 64 features: 4,096 numbers."""
    from harness.training.alone import Alone

    one, _ = attached(world.llama, stage("qlora_8bit_moments", rank=64), steps=1)
    session = Alone(one)
    session.advance(1)
    kinds = {state["state1"].dtype for state in session.optimizer.state.values()}
    assert kinds == {torch.uint8}
    assert type(session.optimizer).__name__ == "AdamW8bit"


def test_pages_without_a_gpu_are_refused():
    method = load("methods", "qlora_8bit_moments")()
    paged = {"adapter_optimizer": "paged_adamw_8bit"}
    assert "GPU" in method.skip(Situation(device="cpu", params=Params(paged)))
    assert method.skip(Situation(device="cuda", params=Params(paged))) is None
    assert method.skip(Situation(device="cpu")) is None


@pytest.mark.parametrize("name", ["qlora", "qlora_int8"])
def test_trials_of_one_process_hold_the_same_base(world, name):
    """One after the other; bitsandbytes moves the scales of an eight-bit weight to the layer that runs first."""
    base, method = resolve_model(str(world.llama)), load("methods", name)()
    params = Params(defaults(method.space))
    process = WarmProcess()
    first, *others = (logits(process.model_for(base, method, params, "cpu")) for _ in range(3))
    assert first.isfinite().all()
    assert all(torch.equal(other, first) for other in others)
