"""Trials that train together are the trials that they would be alone: loss by loss, whatever they differ in.

Compared are loss curves over 100 steps (outside CI 20). In float32 two ways of adding the same numbers part by 1e-5 only where training
is stable; in float64 they agree at any rate, up to what models compute in float32 by themselves (norms, rotary tables).
"""

import dataclasses
import math
import random
import string

import pytest
import torch

from harness.nn.stack import CannotStack, Stack, stacked
from harness.space import Params
from harness.tasks.training_rows import Row
from harness.training.alone import Alone
from harness.training.together import Together
from tests.patience import THOROUGH
from tests.tiny import attached, logits, save_gpt2, save_llama, stage, train

STEPS = 100 if THOROUGH else 20


def made_up(count, seed=0):
    draw = random.Random(seed)
    return [
        Row(
            prompt=f"{number} " + "x" * draw.randint(0, 24) + ":",
            completion=" " + "".join(draw.choice(string.ascii_letters) for _ in range(draw.randint(1, 16))),
        )
        for number in range(count)
    ]


ROWS = made_up(50)


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """Bases: tied as they come, a Llama whose output layer is its own, a GPT-2 that drops out outside attention."""
    root = tmp_path_factory.mktemp("bases")
    return {
        "llama": world.llama,
        "gpt2": world.gpt2,
        "untied": save_llama(root / "untied", tie_word_embeddings=False),
        "noisy": save_gpt2(root / "noisy", dropout=0.1, attn_pdrop=0.0),
    }


def learners(folder, stages, steps=STEPS, dtype=torch.float64, seeds=None, rows=ROWS):
    seeds = seeds or range(len(stages))
    lengths = [steps] * len(stages) if isinstance(steps, int) else steps
    return [
        attached(folder, one, length, rows, seed=seed, dtype=dtype)[0]
        for one, length, seed in zip(stages, lengths, seeds, strict=True)
    ]


def both_ways(folder, stages, **options):
    """Loss curves of the same trials, one by one and together."""
    alone = [train(one)[0] for one in learners(folder, stages, **options)]
    return alone, train(*learners(folder, stages, **options))


def assert_same(alone, together, within):
    for mine, theirs in zip(together, alone, strict=True):
        assert all(map(math.isfinite, mine))
        assert mine == pytest.approx(theirs, abs=within)


MIXED = [
    {"rank": 1, "schedule": "cosine", "weight_decay": 0.1, "max_grad_norm": 1.0, "alpha": 1.0},
    {"rank": 8, "schedule": "linear", "weight_decay": 0.0, "max_grad_norm": 0.0, "alpha": 8.0, "warmup_share": 0.3},
    {"rank": 16, "schedule": "constant", "weight_decay": 0.3, "max_grad_norm": 0.1, "adapter_dropout": 0.3},
    {"rank": 3, "schedule": "cosine", "adapter_dropout": 0.1, "alpha": 3.0, "warmup_share": 0.0},
]
LOUD = [5e-3, 1e-2, 2e-3, 1e-2]
CALM = [1e-3, 5e-4, 2e-4, 1e-3]


def mixed(method, rates, **common):
    return [
        stage(method, batch_size=2, **own | {"learning_rate": rate} | common)
        for own, rate in zip(MIXED[: len(rates)], rates, strict=True)
    ]


def plain(method, rates, objective="sft", **common):
    optimizer = ("schedule", "weight_decay", "max_grad_norm", "warmup_share")
    owns = [{name: value for name, value in one.items() if name in optimizer} for one in MIXED[: len(rates)]]
    return [
        stage(method, objective, batch_size=2, **own | {"learning_rate": rate} | common)
        for own, rate in zip(owns, rates, strict=True)
    ]


CASES = {
    "lora": ("llama", mixed("lora", LOUD), 1e-7),
    "lora, transposed layers": ("gpt2", mixed("lora", LOUD), 1e-7),
    "lora, attention only, base that drops out": ("noisy", mixed("lora", LOUD, target="attention"), 1e-7),
    "dora": ("gpt2", mixed("dora", LOUD[:3]), 1e-7),
    "ia3": ("llama", plain("ia3", LOUD[:2]), 1e-7),
    "full, tied embeddings": ("llama", plain("full", [3e-3, 1e-3]), 1e-7),
    "full, an output layer of its own": ("untied", plain("full", [3e-3, 1e-3]), 1e-7),
    "full, base that drops out": ("noisy", plain("full", [3e-3, 1e-3]), 1e-7),
    "accumulation": ("gpt2", mixed("lora", [2e-3, 5e-3], gradient_accumulation=2), 1e-7),
    "continued pretraining": ("gpt2", plain("lora", [1e-3, 5e-3], "continued_pretraining", max_length=24), 1e-7),
    "in float32: lora": ("llama", mixed("lora", CALM), 1e-5),
    "in float32: full": ("gpt2", plain("full", [1e-3, 3e-4]), 1e-5),
}


@pytest.mark.parametrize("case", CASES)
def test_together_is_alone(case, folders):
    family, stages, within = CASES[case]
    dtype = torch.float32 if within == 1e-5 else torch.float64
    alone, together = both_ways(folders[family], stages, dtype=dtype)
    assert {len(curve) for curve in together} == {STEPS}
    assert_same(alone, together, within)
    assert alone[0] != pytest.approx(alone[1], abs=1e-2)


def test_unstable_training_parts_no_sooner_than_by_a_change_of_the_last_bit(folders):
    """At a constant rate of 2e-2 whatever differs doubles every other step, in one way of adding up as in another."""
    wild = [stage("lora", batch_size=2, rank=16, learning_rate=2e-2, schedule="constant", warmup_share=0.0)] * 2
    alone, together = both_ways(folders["gpt2"], wild, steps=70)
    nudged = learners(folders["gpt2"], wild, 70)
    for one in nudged:
        for name, value in one.model.named_parameters():
            if "lora_A" in name:
                value.data.mul_(1 + 2**-52)
    for usual, mine, other in zip(alone, together, [train(one)[0] for one in nudged], strict=True):
        assert agreement(usual, other) < 70
        assert agreement(usual, mine) >= agreement(usual, other) / 2


def agreement(left, right):
    """Steps before two curves part by more than 1e-7."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=True)) if abs(a - b) > 1e-7), len(left))


def test_trials_of_different_lengths_leave_one_after_the_other(folders):
    alone, together = both_ways(folders["gpt2"], mixed("lora", LOUD), steps=[60, 20, 40, 40])
    assert [len(curve) for curve in together] == [60, 20, 40, 40]
    assert_same(alone, together, 1e-7)


def test_one_that_stops_early_disturbs_nobody(folders):
    """It is pruned at step 10 of a schedule over 40."""

    def ready():
        group = learners(folders["llama"], mixed("lora", LOUD[:3]), 40)
        group[1] = dataclasses.replace(group[1], watch=dataclasses.replace(group[1].watch, stop_at=10))
        return group

    alone, together = [train(one)[0] for one in ready()], train(*ready())
    assert [len(curve) for curve in together] == [40, 10, 40]
    assert_same(alone, together, 1e-7)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_that_diverges_disturbs_nobody(method, folders):
    """Eight trials; the fourth one's rate overflows float32 in its second step that has one."""
    rates = [1e-3 * (1 + k / 10) for k in range(8)]
    stages = [stage(method, batch_size=2, learning_rate=rate, warmup_share=0.0) for rate in rates]

    def ready():
        group = learners(folders["llama"], stages, 30, torch.float32)
        group[3].setup = dataclasses.replace(group[3].setup, params=Params(group[3].setup.params, learning_rate=1e30))
        return group

    group = ready()
    together = train(*group)
    alone = [train(one)[0] for one in ready()]
    assert [index for index, one in enumerate(group) if one.failure] == [3]
    assert group[3].failure.status == "diverged"
    assert group[3].step == len(together[3]) == len(alone[3]) < 5
    del together[3], alone[3]
    assert_same(alone, together, 1e-5)
    assert all(one.step == 30 for index, one in enumerate(group) if index != 3)


def test_weights_and_moments_go_back_to_their_trials(folders):
    """Ten steps together, then alone: as if alone from the start. So a continuation needs no neighbours."""
    alone = [train(one)[0] for one in learners(folders["gpt2"], mixed("dora", LOUD), 20)]
    group = learners(folders["gpt2"], mixed("dora", LOUD), 20)
    session = Together(group)
    session.advance(10)
    session.close()
    for one in group:
        moved = {name for name, value in one.model.named_parameters() if value.requires_grad}
        assert moved == set(one.moments)
        for name, (first, second) in one.moments.items():
            assert first.shape == second.shape == one.model.get_parameter(name).shape
    later = [train(one)[0] for one in group]
    assert_same([curve[10:] for curve in alone], later, 1e-7)


def test_nothing_that_is_frozen_moves(folders):
    group = learners(folders["llama"], mixed("lora", LOUD), 5)
    before = [{name: value.clone() for name, value in one.model.named_parameters()} for one in group]
    train(*group)
    for one, start in zip(group, before, strict=True):
        for name, value in one.model.named_parameters():
            assert torch.equal(value, start[name]) != value.requires_grad, name


def test_padding_of_a_smaller_rank_stays_zero(folders):
    group = learners(folders["llama"], mixed("lora", LOUD), 10)
    session = Together(group)
    session.advance(10)
    for slot in session.stack.slots:
        for k, one in enumerate(group):
            whole = session.stack.values[k, slot.columns].detach().view(slot.shape).clone()
            own = one.model.get_parameter(slot.name).shape
            whole[tuple(slice(0, size) for size in own)] = 0
            assert not whole.any()


@pytest.mark.parametrize("method", ["dora", "full"])
def test_a_stack_scores_as_its_trials_do(method, folders):
    group = learners(folders["gpt2"], mixed("dora", LOUD) if method == "dora" else plain("full", [3e-3, 1e-3]), 10)
    train(*group)
    wanted = [logits(one.model) for one in group]
    with stacked([one.model for one in group], [one.choices.method for one in group]) as (model, count):
        assert count == len(group)
        assert (model.device.type, model.dtype) == ("cpu", torch.float64)
        ids = torch.arange(5, 45).reshape(2, 20).repeat(count, 1)
        with torch.no_grad():
            found = model.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-9, rtol=0)


def test_scoring_some_of_them_on_the_way_changes_nothing(folders):
    """By the stack itself, where all are due, and from their own models, where one is."""
    alone = [train(one)[0] for one in learners(folders["noisy"], mixed("lora", LOUD[:3]), 20)]
    group = learners(folders["noisy"], mixed("lora", LOUD[:3]), 20)
    session = Together(group)
    for due in (group, group[1:2], group[:2]):
        session.advance(5)
        with session.scoring(due) as (model, count), torch.no_grad():
            assert count == len(due)
            training = model.training
            model.eval()(input_ids=torch.randint(5, 200, (2 * count, 7)))
            model.train(training)
    session.advance(5)
    assert [one.losses.total for one in group] == pytest.approx([sum(curve) for curve in alone], abs=1e-6)


def test_random_numbers_are_not_their_neighbours(folders):
    """The same trial beside other ones, and in another place, has the same masks; two seeds have different ones."""
    dropped = [stage("lora", batch_size=2, adapter_dropout=0.3, learning_rate=1e-3) for _ in range(3)]
    first = train(*learners(folders["noisy"], dropped, 10, seeds=[1, 2, 3]))
    second = train(*learners(folders["noisy"], dropped, 10, seeds=[3, 4, 1]))
    assert first[0] == pytest.approx(second[2], abs=1e-9)
    assert first[2] == pytest.approx(second[0], abs=1e-9)


def test_dropout_in_attention_cannot_be_stacked(tmp_path):
    """torch's attention kernel draws one stream of random numbers for all rows."""
    for folder, name in (
        (save_llama(tmp_path / "llama", dropout=0.1), "attention_dropout"),
        (save_gpt2(tmp_path / "gpt2", dropout=0.1), "attn_pdrop"),
    ):
        group = learners(folder, mixed("lora", LOUD[:2]), 2)
        with pytest.raises(CannotStack, match=f"{name} of the base draws random numbers that trials would share"):
            Together(group)


def test_virtual_tokens_cannot_be_stacked(folders):
    group = learners(folders["llama"], [stage("prefix_tuning")] * 2, 2)
    with pytest.raises(CannotStack, match="is in no layer that takes rows"):
        Together(group)


def test_layers_of_other_shapes_cannot_be_stacked_without_a_forward_pass_of_their_own(folders, monkeypatch):
    group = learners(folders["llama"], mixed("lora", LOUD[:2]), 2)
    monkeypatch.setattr(type(group[0].choices.method), "stacked", lambda self, layers, dropout: None)
    with pytest.raises(CannotStack, match=r"q_proj differs in shape among trials"):
        Together(group)


def test_a_method_without_a_forward_pass_of_its_own_is_mapped(folders, monkeypatch):
    """LoRA of one rank through PEFT's own layer, by `torch.func`: what a new method gets without writing anything."""
    stages = [stage("lora", batch_size=2, rank=4, learning_rate=rate) for rate in LOUD[:3]]
    alone = [train(one)[0] for one in learners(folders["llama"], stages, 20)]
    group = learners(folders["llama"], stages, 20)
    monkeypatch.setattr(type(group[0].choices.method), "stacked", lambda self, layers, dropout: None)
    assert_same(alone, train(*group), 1e-7)


def test_weight_decay_does_what_adamw_says(folders):
    """Without a gradient a weight shrinks by rate times decay, and a bias or norm stays as it is."""
    optimizer = {"weight_decay": 0.3, "schedule": "constant", "warmup_share": 0.0}
    group = learners(folders["gpt2"], [stage("full", learning_rate=rate, **optimizer) for rate in (1e-3, 2e-3)], 1)
    session = Together(group)
    before = session.stack.values.detach().clone()
    session.optimizer_step()
    after, decayed = session.stack.values.detach(), session.stack.decayed
    for k, rate in enumerate((1e-3, 2e-3)):
        torch.testing.assert_close(after[k, :decayed], before[k, :decayed] * (1 - rate * 0.3), atol=1e-12, rtol=0)
        assert torch.equal(after[k, decayed:], before[k, decayed:])
    kept = {slot.name for slot in session.stack.slots if slot.start >= decayed}
    assert kept == {name for name, _ in group[0].model.named_parameters() if "ln_" in name or name.endswith("bias")}


def test_one_alone_is_no_stack(folders):
    (one,) = learners(folders["llama"], mixed("lora", LOUD[:1]), 2)
    with stacked([one.model], [one.choices.method]) as (model, count):
        assert (model, count) == (one.model, 1)
    with Alone(one).scoring([one]) as (model, count):
        assert (model, count) == (one.model, 1)


def test_the_stack_holds_one_base(folders):
    """Parameters that no trial moves are the first model's own tensors, not copies."""
    group = learners(folders["llama"], mixed("lora", LOUD), 2)
    stack = Stack([one.model for one in group], [one.choices.method for one in group])
    own = {id(value) for value in (*group[0].model.parameters(), stack.values)}
    new = [name for name, value in stack.model.named_parameters() if id(value) not in own]
    assert new == []
