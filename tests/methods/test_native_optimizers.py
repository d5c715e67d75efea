"""Methods that step in a way of their own: first steps by hand, choices by hand, and rungs that go on bit for bit."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness.methods._optimizers import LowRankAdam, limited, random_directions
from harness.methods._resting import MOVES
from harness.methods.far import feed_forward_layers
from harness.methods.spider import selected
from harness.records.paths import Paths
from harness.trial.group import Workspace, run_trial
from tests.tiny import attached, config, stage, train

STEADY = {"schedule": "constant", "warmup_share": 0.0}
SMALL = {
    "galore": {"projection_rank": 4, "refresh_steps": 3},
    "apollo": {"projection_rank": 4, "refresh_steps": 3},
    "far": {"retained_nodes": 0.25, "priming_share": 0.2},
    "spider": {"selected_share": 0.3, "refresh_steps": 2},
    "lisa": {"period": 2},
    "layer_freezing": {"gradual": True, "trained_share": 1.0},
    "diff_pruning": {},
    "sora": {"rank": 4},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_rung_is_the_straight_run(name, world, tmp_path):
    """Half of the steps, a checkpoint on disk, then the rest: every weight as if it had never stopped."""

    def weights(folder, fidelities):
        work = Workspace(Paths(folder), (world.tasks,), device="cpu", keep_checkpoint=True, keep_model=True)
        trial = config(world, stage(name, learning_rate=3e-3, weight_decay=0.1, **SMALL[name]), steps=10)
        for fidelity in fidelities:
            result = run_trial(dataclasses.replace(trial, fidelity=fidelity), work)
            assert result.status == "complete", result.reason
        assert (result.provenance.effective.inherited is not None) == (len(fidelities) > 1)
        return load_file(work.paths.model(trial.key) / "model.safetensors")

    straight, resumed = weights(tmp_path / "straight", [1.0]), weights(tmp_path / "resumed", [0.5, 1.0])
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


@pytest.mark.parametrize("name", SMALL)
def test_a_trainer_of_trls_honours_what_a_method_does_around_a_step(name, world, monkeypatch):
    """One step on all rows is the same step in both engines: what a method does to it is, too."""
    from harness.plugins import load

    def weights():
        one_stage = stage(name, batch_size=8, max_grad_norm=0.0, learning_rate=2e-3, **STEADY | SMALL[name])
        ready, _ = attached(world.llama, one_stage, 1)
        own = ready.trainer is None
        train(ready)
        return {key: value.detach() for key, value in ready.model.named_parameters()}, own

    (mine, own), _ = weights(), monkeypatch.setattr(load("objectives", "sft"), "fuses", False)
    trls, other = weights()
    assert own
    assert not other
    for key, value in mine.items():
        # Adam's first step is the gradient's sign: where that is 0 to rounding, it may differ
        close = torch.isclose(trls[key], value, atol=1e-5, rtol=1e-4)
        assert close.float().mean() > 0.99, key


def test_an_adam_that_projects_nothing_away_is_torchs():
    """Moments and bias correction over seven steps, with decay: as matrices under the identity, and as they are."""
    torch.manual_seed(0)
    starts = [torch.randn(3, 5), torch.randn(5, 3), torch.randn(4)]
    mine, theirs = ([torch.nn.Parameter(value.clone()) for value in starts] for _ in range(2))
    periods = []

    def projection(gradient, number, period):
        periods.append((number, period))
        return torch.eye(len(gradient))

    own = [{"params": mine[:2], "low_rank": True}, {"params": mine[2:]}]
    own = [group | {"lr": 0.1, "weight_decay": 0.2} for group in own]
    optimizer = LowRankAdam(own, projection, lambda gradient, p, small, direction, state: direction, 3)
    reference = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.2)
    for _ in range(7):
        for one, other in zip(mine, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert periods == [(number, period) for period in range(3) for number in (1, 2)]  # at steps 1, 4 and 7


def first_step(world, name, family="llama", **params):
    """Weights before and after one step without clipping, and the gradients of that step."""
    ready, _ = attached(
        getattr(world, family), stage(name, max_grad_norm=0.0, learning_rate=0.01, **STEADY | params), 1
    )
    before = {key: value.detach().clone() for key, value in ready.model.named_parameters()}
    slopes = {}
    after = ready.choices.method.after_step

    def look(model, step):
        slopes.update({key: value.grad.clone() for key, value in model.named_parameters()})
        after(model, step)

    ready.choices.method.after_step = look
    train(ready)
    return before, dict(ready.model.named_parameters()), slopes


# Adam's first step from zero moments: m = .1 g / .1 = g, v = .001 g^2 / .001 = g^2, so g / (|g| + 1e-8)


def adam(g):
    return g / (np.abs(g) + 1e-8)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_galores_first_step_is_adams_in_the_gradients_own_directions(family, world):
    before, after, slopes = first_step(world, "galore", family, projection_rank=4, update_scale=0.5, weight_decay=0.1)
    seen = set()
    for key, start in before.items():
        g, w = slopes[key].double().numpy(), start.double().numpy()
        moved = after[key].detach().double().numpy() - w
        inside = start.dim() == 2 and (".layers." in key or ".h." in key)
        decay = 0.01 * 0.1 * w * (start.dim() == 2)
        if inside:
            tall = g.shape[0] > g.shape[1]
            u = np.linalg.svd(g.T if tall else g, full_matrices=False)[0][:, :4]
            step = 0.5 * u @ adam(u.T @ (g.T if tall else g))
            wanted = step.T if tall else step
            # where the projected gradient is about 1e-8 its sign is noise: compare most entries
            close = np.isclose(moved, -0.01 * wanted - decay, atol=2e-5)
            assert close.mean() > 0.99, key
            assert np.linalg.matrix_rank(moved + decay, tol=1e-4) <= 4
            seen.add(tall)
        elif np.abs(g).min() > 1e-6:
            assert np.allclose(moved, -0.01 * adam(g) - decay, atol=1e-6), key
    assert seen == {True, False}


@pytest.mark.parametrize("scale_of", ["channel", "tensor"])
def test_apollos_first_step_is_the_gradient_scaled_as_adam_scales_its_projection(scale_of, world):
    before, after, slopes = first_step(world, "apollo", projection_rank=2, update_scale=3.0, scale_of=scale_of)
    ready, _ = attached(world.llama, stage("apollo"))
    order = [p for g in ready.choices.method.optimizer(ready.model, ready.setup).param_groups for p in g["params"]]
    names = {id(p): name for name, p in ready.model.named_parameters()}
    for number, parameter in enumerate(order, 1):
        key = names[id(parameter)]
        if ".layers." not in key or parameter.dim() != 2:
            continue
        g = slopes[key]
        tall = g.shape[0] > g.shape[1]
        g = (g.T if tall else g).double()
        p = random_directions(g, 2, 1, "apollo", number, 0)
        small = p @ g
        stepped = small / (small.abs() + 1e-8)
        axis = {"channel": 0, "tensor": (0, 1)}[scale_of]
        wanted = -0.01 * 3.0 * g * stepped.norm(dim=axis) / small.norm(dim=axis)
        moved = (after[key].detach() - before[key]).double()
        torch.testing.assert_close(moved.T if tall else moved, wanted, atol=1e-5, rtol=1e-3)


def test_a_random_projection_keeps_norms_in_the_mean():
    g = torch.randn(16, 40)
    norms = [float((random_directions(g, 4, seed) @ g).norm() ** 2) for seed in range(400)]
    assert sum(norms) / 400 == pytest.approx(float(g.norm() ** 2), rel=0.1)
    assert not torch.equal(random_directions(g, 4, 1), random_directions(g, 4, 2))


def test_an_updates_norm_grows_by_a_hundredth_at_most():
    state = {}
    one = torch.tensor([3.0, 4.0])
    assert limited(one, state, 1.01).norm() == pytest.approx(5.0)
    assert limited(10 * one, state, 1.01).norm() == pytest.approx(5.05)
    assert limited(one, state, 1.01).norm() == pytest.approx(5.0)
    assert limited(10 * one, state, 1.01).norm() == pytest.approx(5.05)


def test_the_moments_of_a_projected_matrix_are_small(world):
    """What GaLore is for: 4 x 128 numbers instead of 64 x 128, twice, and a projection of 4 x 64."""
    ready, _ = attached(world.llama, stage("galore", projection_rank=4, **STEADY), 1)
    train(ready)
    states = ready.optimizer_state["state"].values()
    sizes = sorted(
        sum(v.numel() for v in s.values() if isinstance(v, torch.Tensor)) for s in states if "projection" in s
    )
    # per layer: four matrices of 64 x 64, two of 128 x 64, one of 64 x 128
    assert sizes == sorted(2 * (4 * [2 * 4 * 64 + 4 * 64] + 3 * [2 * 4 * 128 + 4 * 64]))


def test_a_rank_above_a_layers_width_is_noted(world):
    """All of the 14 layers have a side of 64."""
    for rank, wanted in ((64, []), (65, ["projection_rank 65 was cut to the width of 14 of 14 linear layers"])):
        ready, notes = attached(world.llama, stage("galore", projection_rank=rank), 1)
        train(ready)
        assert [note.partition(", which")[0] for note in notes if "rank" in note] == wanted


# FAR


@pytest.mark.parametrize(("priming", "warmup"), [(0.2, 0.0), (0.05, 0.2)])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_far_freezes_the_nodes_that_moved_least_in_priming(family, priming, warmup, world):
    """Two of ten steps prime, since at a rate of 0 nothing moves; a quarter of each feed-forward layer's nodes go on."""
    usual = {"learning_rate": 3e-3, "weight_decay": 0.1, "schedule": "constant", "warmup_share": warmup}
    ready, notes = attached(
        getattr(world, family), stage("far", retained_nodes=0.25, priming_share=priming, **usual), 10
    )
    assert notes == ["the nodes to freeze are chosen after 2 of 10 steps"]
    start, primed = ([], [])
    start += [(layer.weight.detach().clone()) for layer in feed_forward_layers(ready.model)]
    after = ready.choices.method.after_step

    def look(model, step):
        after(model, step)
        if step == 2:
            for layer in feed_forward_layers(model):
                bias = None if layer.bias is None else layer.bias.detach().clone()
                primed.append((layer.weight.detach().clone(), bias))

    ready.choices.method.after_step = look
    train(ready)
    axis = 0 if family == "gpt2" else 1
    layers = list(feed_forward_layers(ready.model))
    assert len(layers) == {"llama": 6, "gpt2": 4}[family]
    for layer, first, (weight, bias) in zip(layers, start, primed, strict=True):
        moved = (weight - first).abs().sum(axis)
        going = set(moved.argsort(descending=True)[: len(moved) // 4].tolist())
        changed = (layer.weight.detach() != weight).any(axis).nonzero().flatten()
        assert set(changed.tolist()) == going
        if bias is not None:
            assert set((layer.bias.detach() != bias).nonzero().flatten().tolist()) <= going
    assert not torch.equal(ready.model.get_input_embeddings().weight, start[0])


# SPIDER


def test_spider_selects_by_the_difference_of_z_scores():
    weight = torch.tensor([[1.0, -4.0], [2.0, 1.0]])
    importance = torch.tensor([[1.0, 5.0], [1.0, 3.0]])
    # |W|: mean 2, deviation sqrt(1.5); importance: mean 2.5, deviation sqrt(2.75)
    zw = [(v - 2) / math.sqrt(1.5) for v in (1, 4, 2, 1)]
    zg = [(v - 2.5) / math.sqrt(2.75) for v in (1, 5, 1, 3)]
    gaps = [g - w for g, w in zip(zg, zw, strict=True)]
    order = sorted(range(4), key=lambda i: -gaps[i])
    assert order[:2] == [3, 0]
    assert selected(weight, importance, 0.5).flatten().tolist() == [1, 0, 0, 1]


def test_spider_moves_what_the_summed_gradients_chose(world):
    one_stage = stage("spider", selected_share=0.3, refresh_steps=2, max_grad_norm=0.0, learning_rate=3e-3, **STEADY)
    ready, _ = attached(world.llama, one_stage, 3)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = ready.model.get_parameter(name)
    known, summed, at = weight.detach().clone(), torch.zeros_like(weight), []
    before, after = ready.choices.method.before_update, ready.choices.method.after_step

    def look(model, step):
        if step <= 2:
            summed.add_(weight.grad.abs())
        before(model, step)

    def look_after(model, step):
        after(model, step)
        at.append(weight.detach().clone())

    ready.choices.method.before_update, ready.choices.method.after_step = look, look_after
    train(ready)
    chosen = selected(known, summed, 0.3).bool()
    assert not torch.equal(chosen, selected(at[1], summed, 0.3).bool())  # by the base's weights, not those of now
    assert chosen.sum() == round(0.3 * weight.numel())
    moved = at[2] != at[1]
    assert not moved[~chosen].any()
    assert moved[chosen].float().mean() > 0.99
    assert (at[1] != at[0]).float().mean() > 0.99  # before the first choice all move
    assert ready.optimizer_state["state"]
    assert sum(MOVES in s for s in ready.optimizer_state["state"].values()) == 14
