"""DP-LoRA's clipping, noise and accounting; very large dropout's mean."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.methods.dp_lora import noise_multiplier
from harness.nn.sequences import IGNORED
from harness.plugins import AXIS_FOLDER, load
from harness.tasks.training_rows import Row
from tests.tiny import attached, logits, stage, train, trained

STEADY = {"schedule": "constant", "warmup_share": 0.0}
DP = {"rank": 2, "alpha": 2.0, "max_grad_norm": 0.0, **STEADY}


def moving(model):
    return [p for p in model.parameters() if p.requires_grad]


def example_gradients(ready, step=1):
    """Each of a step's examples: the gradient of its own mean loss, one vector."""
    found = []
    for index in ready.order[step - 1]:
        (sequence,) = ready.examples[index]
        ids, labels = torch.tensor([sequence.input_ids]), torch.tensor([sequence.labels])
        said = ready.model(input_ids=ids).logits[0, :-1]
        loss = cross_entropy(said, labels[0, 1:], ignore_index=IGNORED)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, moving(ready.model))]))
    return found


def noisy_mean(ready):
    """What the first step hands to the optimiser, one vector."""
    seen = {}
    before = ready.choices.method.before_update

    def look(model, step):
        before(model, step)
        seen[step] = torch.cat([p.grad.flatten().clone() for p in moving(model)])

    ready.choices.method.before_update = look
    train(ready)
    return seen


def shaken(ready):
    torch.manual_seed(2)
    for p in moving(ready.model):
        p.data.add_(0.05 * torch.randn_like(p))
    return ready


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("limit", [1e-2, 10.0])
def test_each_examples_gradient_is_clipped_by_itself(limit, passes, world):
    """Without noise: the mean over the step's examples of g min(1, C / |g|), whatever their lengths."""
    sizes = {"batch_size": 4 // passes, "gradient_accumulation": passes}
    ready = shaken(attached(world.llama, stage("dp_lora", clip_norm=limit, **DP | sizes), 1)[0])
    ready.choices.method.noise = 0.0
    own = example_gradients(ready)
    norms = [float(g.norm()) for g in own]
    assert all((norm > limit) == (limit == 1e-2) for norm in norms)
    wanted = sum(g * min(1.0, limit / norm) for g, norm in zip(own, norms, strict=True)) / 4
    torch.testing.assert_close(noisy_mean(ready)[1], wanted, atol=1e-6, rtol=1e-4)


def test_every_step_sums_its_own_examples(world):
    """Without noise, a step's mean is of its own clipped gradients, whatever the step before summed."""
    ready = shaken(attached(world.llama, stage("dp_lora", clip_norm=1e-2, **DP), 2)[0])
    ready.choices.method.noise = 0.0
    wanted, before = {}, ready.choices.method.before_step

    def look(model, step):
        wanted[step] = sum(1e-2 * g / g.norm() for g in example_gradients(ready, step)) / 4
        before(model, step)

    ready.choices.method.before_step = look
    found = noisy_mean(ready)
    for step in (1, 2):
        torch.testing.assert_close(found[step], wanted[step], atol=1e-6, rtol=1e-4)


def test_one_row_moves_the_sum_by_the_clipping_norm_at_most(world):
    """What privacy rests on: another row of any length changes no other row's part."""
    rows = [Row(prompt=f"{i}:", completion=" abc" * (1 + i)) for i in range(6)]
    long = [*rows[:-1], Row(prompt="9:", completion=" z" * 40)]

    def total(rows):
        ready = shaken(attached(world.llama, stage("dp_lora", clip_norm=0.1, **DP | {"batch_size": 5}), 1, rows)[0])
        ready.choices.method.noise = 0.0
        found = {ready.examples[index][0].input_ids for index in ready.order[0]}
        return 5 * noisy_mean(ready)[1], found

    (one, seen), (other, others) = total(rows), total(long)
    assert len(seen & others) == 4  # one row differs
    assert 0.01 < float((one - other).norm()) <= 0.2 + 1e-5


def test_the_noise_has_the_deviation_that_was_accounted_for(world):
    """Of the mean over 4 examples: multiplier * C / 4; drawn anew each step, the same for the same seed."""
    base = {"clip_norm": 0.5, **DP, "rank": 16}
    means = []
    for noise, seed in ((3.0, 1), (3.0, 1), (0.0, 1), (3.0, 2)):
        ready, _ = attached(world.llama, stage("dp_lora", **base), 2, seed=seed)
        ready.choices.method.noise = noise
        means.append(noisy_mean(ready))
    assert torch.equal(means[0][1], means[1][1])
    drawn = means[0][1] - means[2][1]
    # some 40 thousand numbers: the deviation is known to a hundredth
    assert float(drawn.std()) == pytest.approx(3.0 * 0.5 / 4, rel=0.02)
    assert abs(float(drawn.mean())) < 0.02 * 3.0 * 0.5 / 4 * 10
    # another seed's noise, and another parameter's (rank 16 on 64 features: 1,024 numbers), has nothing to do with it
    assert abs(likeness(means[0][1], means[3][1])) < 0.05
    assert abs(likeness(drawn[:1024], drawn[1024:2048])) < 0.15
    later = means[0][2] - means[0][1]
    assert float(later.std()) == pytest.approx(math.sqrt(2) * 3.0 * 0.5 / 4, rel=0.1)


def likeness(one, other):
    return float(torch.corrcoef(torch.stack([one, other]))[0, 1])


@pytest.mark.parametrize(("noise", "epochs", "epsilon"), [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)])
def test_the_accountant_agrees_with_published_values(noise, epochs, epsilon):
    """TensorFlow Privacy's table for 60,000 rows, batches of 256 and delta 1e-5, with Mironov's conversion (2017)."""
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    rdp = compute_rdp(q=256 / 60000, noise_multiplier=noise, steps=epochs * 60000 // 256, orders=orders)
    found = min(r + math.log(1e5) / (a - 1) for r, a in zip(rdp, orders, strict=True))
    assert found == pytest.approx(epsilon, abs=0.011)


def test_the_accountant_agrees_with_the_closed_form_of_plain_gaussian_steps():
    """RDP of k steps is a k / (2 s^2) at order a; epsilon by the conversion of Balle et al. 2020."""
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(4.0, 1.0, 10)]
    orders = [1 + x / 100 for x in range(1, 6000)]
    wanted = min(a * 10 / 32 + math.log((a - 1) / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in orders)
    assert accountant.get_epsilon(delta=1e-5) == pytest.approx(wanted, rel=0.01)


def test_the_noise_buys_the_epsilon_asked_for():
    from opacus.accountants import RDPAccountant

    found = noise_multiplier(8.0, 1000, 50, 100)
    accountant = RDPAccountant()
    accountant.history = [(found, 0.05, 100)]
    assert accountant.get_epsilon(delta=1000**-1.1) == pytest.approx(8.0, abs=0.09)
    assert noise_multiplier(1.0, 1000, 50, 100) > found


def test_a_stages_noise_buys_the_epsilon_that_it_names(world):
    """Three steps of two passes of two among eight rows, by opacus' accountant."""
    from opacus.accountants import RDPAccountant

    sizes = {"batch_size": 2, "gradient_accumulation": 2}
    ready, _ = attached(world.llama, stage("dp_lora", epsilon=4.0, **DP | sizes), 3)
    accountant = RDPAccountant()
    accountant.history = [(ready.choices.method.noise, 0.5, 3)]
    assert accountant.get_epsilon(delta=8**-1.1) == pytest.approx(4.0, abs=0.05)


def test_privacy_is_noted_with_what_it_rests_on(world):
    _, notes = attached(world.llama, stage("dp_lora"), 2)
    assert notes[0].startswith(
        "(8, 0.102)-differential privacy of a training row by the RDP accountant: noise multiplier"
    )
    assert "2 steps of 4 among 8 rows" in notes[0]


def test_steps_of_all_rows_are_refused(world):
    with pytest.raises(SpecError, match="fewer examples than the 8 training rows, but got 8: lower batch_size"):
        attached(world.llama, stage("dp_lora", batch_size=8), 2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"objective": "dpo"}, None),
        ({"objective": "kto"}, "its gradient by itself"),
        ({"objective": "continued_pretraining"}, "its gradient by itself"),
        ({"retention": "replay"}, "own rows and loss"),
        ({"retention": "l2_sp"}, "own rows and loss"),
        ({"retention": "ties"}, None),
        ({"curation": "subset"}, "looks at all rows"),
        ({"curation": "perplexity_mask"}, "looks at all rows"),
    ],
)
def test_what_would_break_privacy_is_refused(changed, said):
    names = {"method": "dp_lora", "objective": "sft", "retention": "none", "curation": "as_is"} | changed
    beside = {axis: load(AXIS_FOLDER[axis], name) for axis, name in names.items()}
    reason = load("methods", "dp_lora")().skip(Situation(beside=beside))
    assert (reason is None) if said is None else said in reason


# Very large dropout


def test_dropout_stands_before_the_output_layer_and_keeps_the_mean(world):
    """Of many draws, the logits' mean is that of scoring: the output layer is linear."""
    ready, _ = attached(world.llama, stage("high_dropout", head_dropout=0.8))
    ids = torch.arange(5, 25).view(1, 20)
    wanted = logits(ready.model)[:1]
    ready.model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = torch.stack([ready.model(input_ids=ids).logits for _ in range(400)])
    # h keeps a fifth of its 64 numbers, times 5: variance of w h is 4 sum (w h)^2
    hidden = ready.model.model.eval()(input_ids=ids).last_hidden_state.detach()
    weight = ready.model.get_output_embeddings().weight.detach()
    variance = 4 * torch.einsum("td,vd->tv", hidden[0] ** 2, weight**2)
    torch.testing.assert_close(drawn.var(0)[0].mean(), variance.mean(), rtol=0.05, atol=0)
    assert float(((drawn.mean(0)[0] - wanted[0]).abs() < 5 * (variance / 400).sqrt() + 1e-5).float().mean()) > 0.999


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dropout_is_gone_from_the_tuned_model(family, world):
    ready = trained(getattr(world, family), stage("high_dropout"), 2)
    merged = ready.choices.method.merge(ready.model, ready.setup)
    wanted = logits(ready.model)
    merged.train()
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, wanted, atol=1e-6, rtol=0)
    ready.model.train()
    with torch.no_grad():
        assert not torch.allclose(ready.model(input_ids=ids).logits, wanted, atol=1e-2)


def test_the_head_alone_moves_if_asked_for(world):
    ready, _ = attached(world.llama, stage("high_dropout", trained_part="head"))
    assert [name for name, p in ready.model.named_parameters() if p.requires_grad] == ["model.embed_tokens.weight"]
