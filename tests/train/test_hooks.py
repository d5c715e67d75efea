"""What plug-ins may do around a step: an optimiser of their own, a penalty, a change after a step or at the end."""

import dataclasses
from types import MethodType

import pytest
import torch

from harness.train import train
from tests.tiny import attached, stage


def moved_after(world, change=lambda ready: None, **params):
    ready, _ = attached(world.llama, stage("full", schedule="constant", warmup_share=0.0, **params), steps=3)
    before = {name: value.detach().clone() for name, value in ready.model.named_parameters()}
    ready = change(ready) or ready
    train(ready)
    return {name: value.detach() - before[name] for name, value in ready.model.named_parameters()}, ready


def with_penalty(scale):
    """The squared distance to where a stage began, as L2-SP has it."""

    def change(ready):
        def penalty(self, model, setup):
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


def test_accumulation_does_not_multiply_a_penalty(world):
    whole, _ = moved_after(world, with_penalty(1.0), batch_size=4)
    parts, _ = moved_after(world, with_penalty(1.0), batch_size=2, gradient_accumulation=2)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], atol=1e-5, rtol=0)


def test_after_step_counts_from_one(world):
    seen = []

    def change(ready):
        ready.choices.method.after_step = lambda model, step: seen.append(step)

    moved_after(world, change)
    assert seen == [1, 2, 3]


def test_training_stops_early_on_the_full_schedule(world):
    """Cosine over 3 steps without warm-up: after the first the rate is (1 + cos(pi/3)) / 2 = 3/4 of the peak."""
    ready, _ = attached(world.llama, stage("full", schedule="cosine", warmup_share=0.0, learning_rate=1e-3), steps=3)
    train(dataclasses.replace(ready, watch=dataclasses.replace(ready.watch, stop_at=1)))
    assert ready.trainer.state.global_step == 1
    assert ready.trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(0.75e-3)


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

    def weights(score_at):
        ready, _ = attached(world.llama, stage("lora", adapter_dropout=0.3), steps=3)
        watch = dataclasses.replace(ready.watch, score_at=score_at, scored=lambda *args: torch.rand(7))
        train(dataclasses.replace(ready, watch=watch))
        return [value for value in ready.model.parameters() if value.requires_grad]

    assert all(torch.equal(a, b) for a, b in zip(weights(frozenset()), weights(frozenset({1, 2})), strict=True))
