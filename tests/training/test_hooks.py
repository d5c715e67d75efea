"""What plug-ins may do around a step: an optimiser of their own, a penalty, a change after a step or at the end.

Each holds in both engines: the harness's own loop, and a trainer of TRL's.
"""

import dataclasses
import random
from types import MethodType

import numpy as np
import pytest
import torch

from harness.nn.batches import OVERHEAD
from harness.records.trial import Ended, TrialStatus
from harness.training.alone import Alone
from harness.training.trl import run_trainer
from tests.tiny import attached, stage, train

pytestmark = pytest.mark.usefixtures("engine")
CONSTANT = {"schedule": "constant", "warmup_share": 0.0}


def moved_after(world, change=lambda ready: None, steps=3, **params):
    ready, _ = attached(world.llama, stage("full", **CONSTANT | params), steps)
    before = {name: value.detach().clone() for name, value in ready.model.named_parameters()}
    ready = change(ready) or ready
    train(ready)
    return {name: value.detach() - before[name] for name, value in ready.model.named_parameters()}, ready


def with_penalty(scale):
    """The squared distance to where a stage began, as L2-SP has it."""

    def change(ready):
        def penalty(self, model, method, setup):
            start = [value.detach().clone() for value in model.parameters()]
            return lambda: scale * sum(((v - s) ** 2).sum() for v, s in zip(model.parameters(), start, strict=True))

        ready.choices.retention.penalty = MethodType(penalty, ready.choices.retention)

    return change


def test_a_penalty_pulls_and_is_no_part_of_the_logged_loss(world):
    free, plain = moved_after(world)
    held, ready = moved_after(world, with_penalty(1e4))

    def distance(moves):
        return sum(float((move**2).sum()) for move in moves.values())

    assert distance(held) < 0.9 * distance(free)
    # the first step starts at distance 0; later ones would show a penalty of many nats if it were counted
    assert ready.losses.mean == pytest.approx(plain.losses.mean, rel=0.2)


def test_neither_accumulation_nor_pieces_of_a_step_multiply_a_penalty(world, monkeypatch):
    whole, _ = moved_after(world, with_penalty(1.0), batch_size=4)
    monkeypatch.setitem(OVERHEAD, "cpu", 0)
    parts, _ = moved_after(world, with_penalty(1.0), batch_size=2, gradient_accumulation=2)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=0)


def test_hooks_are_called_in_their_order_and_count_from_one(engine, world):
    """Two passes a step. What comes before the update sees gradients as they are, unless TRL has clipped them already."""
    called, norms = [], []

    def change(ready):
        method, slopes = ready.choices.method, [p for p in ready.model.parameters() if p.requires_grad]

        def norm():
            return float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in slopes])))

        def before_update(model, step):
            called.append(("before_update", step))
            for p in slopes:
                p.grad.mul_(1e3)

        def after_step(model, step):
            called.append(("after_step", step))
            norms.append(norm())

        ready.choices.retention.before_step = lambda step: called.append(("retention", step))
        method.before_step = lambda model, step: called.append(("before_step", step))
        method.after_backward = lambda model: called.append(("after_backward", norm() > 0))
        method.before_update, method.after_step = before_update, after_step

    moved_after(world, change, steps=2, batch_size=2, gradient_accumulation=2, max_grad_norm=0.5)
    passes = [("after_backward", True)] * 2
    around = [[("before_step", n), ("retention", n), *passes, ("before_update", n), ("after_step", n)] for n in (1, 2)]
    assert called == [*around[0], *around[1]]
    limit = 0.5 if engine == "own loop" else 500.0
    assert norms == [pytest.approx(limit, rel=1e-3)] * 2


def test_after_step_counts_from_one_and_sees_the_step_done(world):
    seen = []

    def change(ready):
        start = [value.detach().clone() for value in ready.model.parameters()]

        def after_step(model, step):
            moved = any(not torch.equal(value, s) for value, s in zip(model.parameters(), start, strict=True))
            seen.append((step, moved))

        ready.choices.method.after_step = after_step

    moved_after(world, change)
    assert seen == [(1, True), (2, True), (3, True)]


def test_what_after_step_does_to_the_model_stays(world):
    """As AdaLoRA's or LISA's changes do."""

    def change(ready):
        def after_step(model, step):
            with torch.no_grad():
                model.get_output_embeddings().weight.zero_()

        ready.choices.method.after_step = after_step

    _, ready = moved_after(world, change)
    assert not ready.model.get_output_embeddings().weight.any()


def test_a_methods_own_optimizer_follows_the_schedule_from_its_own_rates(world):
    """Cosine over 3 steps without warm-up: (1 + cos(pi s / 3)) / 2 = 1, 3/4, 1/4 of each group's own peak."""
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def change(ready):
        def optimizer(self, model, setup):
            fast, *slow = model.parameters()
            return Watched([{"params": [fast], "lr": 0.04}, {"params": slow, "lr": 0.02}])

        ready.choices.method.optimizer = MethodType(optimizer, ready.choices.method)
        if ready.trainer is not None:  # it was given one when it was made
            ready.trainer.optimizer = ready.choices.method.optimizer(ready.model, ready.setup)

    _, ready = moved_after(world, change, schedule="cosine")
    assert np.allclose(seen, [[0.04, 0.02], [0.03, 0.015], [0.01, 0.005]])
    assert ready.settings.optimizer == "Watched"


def test_training_stops_early_on_the_full_schedule(world):
    """Cosine over 3 steps without warm-up: the second of them has (1 + cos(pi/3)) / 2 = 3/4 of the peak."""
    ready, _ = attached(world.llama, stage("full", schedule="cosine", warmup_share=0.0, learning_rate=1e-3), steps=3)
    ready = dataclasses.replace(ready, watch=dataclasses.replace(ready.watch, stop_at=2))
    before = [value.detach().clone() for value in ready.model.parameters()]
    moves = []

    def after_step(model, step):
        pairs = zip(model.parameters(), before, strict=True)
        moves.append(max(float((value.detach() - start).abs().max()) for value, start in pairs))

    ready.choices.method.after_step = after_step
    train(ready)
    assert ready.step == len(moves) == 2
    assert ready.settings.scheduled_steps == 3
    # Adam's first step moves a weight by its rate; its second by about as much where the gradient stays, times its own
    assert moves == [pytest.approx(1e-3, rel=1e-3), pytest.approx(1.75e-3, rel=1e-2)]


def test_a_quantised_models_adapters_stay_in_float32(world):
    """TRL turns them to bfloat16, where an update below 1/256 of a weight is lost."""
    ready, _ = attached(world.llama, stage("qlora"))
    assert {value.dtype for value in ready.model.parameters() if value.requires_grad} == {torch.float32}


def test_nothing_is_printed(world, capfd):
    moved_after(world)
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_scoring_that_draws_random_numbers_changes_no_training(world):
    """Dropout makes every draw matter."""

    def weights(disturb):
        ready, _ = attached(world.llama, stage("lora", adapter_dropout=0.3), steps=3)
        ready = dataclasses.replace(ready, watch=dataclasses.replace(ready.watch, score_at=frozenset({1, 2})))
        if ready.trainer is not None:
            run_trainer(ready, disturb)
        else:
            session = Alone(ready)
            while ready.active:
                session.advance(ready.until_pause)
                disturb()
            session.close()
        return [value for value in ready.model.parameters() if value.requires_grad]

    def noise():
        torch.rand(7)
        np.random.rand(7)
        random.random()

    assert all(torch.equal(a, b) for a, b in zip(weights(lambda: None), weights(noise), strict=True))


def test_it_pauses_where_it_is_to_be_scored(world):
    ready, _ = attached(world.llama, stage("full"), steps=5)
    ready = dataclasses.replace(ready, watch=dataclasses.replace(ready.watch, score_at=frozenset({2, 3}), stop_at=4))
    paused = []
    if ready.trainer is not None:
        run_trainer(ready, lambda: paused.append((ready.step, ready.losses.steps)))
    else:
        session = Alone(ready)
        while ready.active:
            session.advance(ready.until_pause)
            paused.append((ready.step, ready.losses.steps))
        assert paused.pop() == (4, 4)
    assert paused == [(2, 2), (3, 3)]
    assert ready.step == 4


def test_a_loss_that_is_not_finite_ends_it_at_its_step(world):
    def change(ready):
        def after_step(model, step):
            if step == 2:
                with torch.no_grad():
                    model.get_output_embeddings().weight[0, 0] = torch.nan

        ready.choices.method.after_step = after_step

    _, ready = moved_after(world, change, steps=6)
    assert ready.failure == Ended(TrialStatus.DIVERGED, "loss became nan at step 3: lower the learning rate")
    assert ready.step == 3
    assert ready.losses.steps == 2


def test_a_trial_whose_time_is_up_ends_at_the_next_step(world):
    ready, _ = attached(world.llama, stage("full"), steps=6)
    ready = dataclasses.replace(ready, watch=dataclasses.replace(ready.watch, time_limit_s=60.0))
    ready.choices.method.after_step = lambda model, step: ready.watch.meter.seconds.update(load=30.1 * step)
    train(ready)
    assert ready.failure.status == "timed_out"
    assert "the trial's 60 s were used up at step 2" in ready.failure.reason
    assert ready.step == 2
