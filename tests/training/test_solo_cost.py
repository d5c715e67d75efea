"""What trials would take alone is measured on steps that are undone to the bit."""

import time

import pytest
import torch

from harness.training import solo_cost as calibration
from harness.training.alone import Alone
from harness.training.solo_cost import Solo, SoloCosts
from harness.training.together import Together
from tests.tiny import attached, stage, train

KIND = ("kind", "cpu", 1)


def learners(world, method="lora", ranks=(2, 8, 4), steps=8):
    params = [{"rank": rank, "adapter_dropout": 0.1} for rank in ranks] if method == "lora" else [{} for _ in ranks]
    return [attached(world.gpt2, stage(method, **own), steps, seed=seed)[0] for seed, own in enumerate(params)]


def state(one):
    """All that a learner's future depends on."""
    weights = {name: value.detach().clone() for name, value in one.model.named_parameters()}
    moments = {f"{name} {n}": pair[n].clone() for name, pair in one.moments.items() for n in (0, 1)}
    tally = one.watch.tally
    numbers = (
        one.step,
        one.losses.total,
        one.losses.steps,
        one.padded_tokens,
        tally.tokens,
        one.failure,
        one.watch.meter.total_s,
    )
    return weights | moments, numbers


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("resumed", [False, True])
def test_measuring_and_looking_change_nothing(resumed, method, world):
    """Also where a trial goes on with the moments of an earlier rung."""
    group = learners(world, method)
    if resumed:
        for one in group:
            session = Alone(one)
            session.advance(2)
            session.close()
    before = [state(one) for one in group]
    costs = SoloCosts()
    costs.calibrate(group, KIND)
    assert costs.differ(group, KIND) is None
    costs.lose(group, KIND, costs.calibrate(group, KIND))
    for one, (tensors, numbers) in zip(group, before, strict=True):
        after, same = state(one)
        assert same == numbers
        assert after.keys() == tensors.keys()
        assert all(torch.equal(after[name], tensors[name]) for name in tensors)
        assert all(value.grad is None for value in one.model.parameters())


def test_training_after_it_is_training_without_it(world):
    measured, plain = learners(world), learners(world)
    costs = SoloCosts()
    costs.calibrate(measured, KIND)
    costs.differ(measured, KIND)
    costs.lose(measured, KIND, costs.calibrate(measured, KIND))
    assert train(*measured) == train(*plain)


def test_the_smallest_and_the_largest_are_measured_and_others_lie_between(world, monkeypatch):
    """LoRA of ranks 2, 8 and 4: 1, 4 and 2 parts of the parameters, so the third lies a third of the way."""
    seen = []

    def measure(one, size):
        seen.append(one.setup.params["rank"])
        return Solo(size, {2: 1.0, 8: 4.0}[one.setup.params["rank"]], 100 * seen[-1], seen[-1])

    monkeypatch.setattr(calibration, "_measure", measure)
    group, costs = learners(world), SoloCosts()
    solos = costs.calibrate(group, KIND)
    assert seen == [2, 8]
    assert [solo.seconds_per_token for solo in solos] == pytest.approx([1.0, 4.0, 2.0])
    assert [solo.trainable for solo in solos] == [
        sum(p.numel() for p in one.model.parameters() if p.requires_grad) for one in group
    ]
    assert [solo.step_memory_bytes for solo in solos] == [8, 8, 8]
    costs.calibrate(group, KIND)
    assert seen == [2, 8]
    costs.calibrate(group, ("another kind", "cpu", 1))
    assert seen == [2, 8, 2, 8]


def test_seconds_per_token_leave_out_the_first_step(world, monkeypatch):
    """By a clock that steps turn: 10 s for the first, then 10 ms per token."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    usual = Alone._step

    def step(self):
        (one,) = self.learners
        before, first = one.padded_tokens, one.step == 0
        done = usual(self)
        now[0] += 10.0 if first else 0.010 * (one.padded_tokens - before)
        return done

    monkeypatch.setattr(Alone, "_step", step)
    for solo in SoloCosts().calibrate(learners(world), KIND):
        assert solo.seconds_per_token == pytest.approx(0.010)
        assert solo.peak_memory_bytes > 0


@pytest.mark.parametrize("left", [1, 2, 3])
def test_a_trial_with_few_steps_left_is_measured_on_those(left, world):
    group = learners(world, steps=left)
    assert all(solo.seconds_per_token > 0 for solo in SoloCosts().calibrate(group, KIND))
    assert [one.step for one in group] == [0, 0, 0]


def test_bases_that_differ_are_found_out(world):
    """The first trial's base serves all: one whose base is another does not belong there."""
    group, costs = learners(world), SoloCosts()
    with torch.no_grad():
        group[2].model.get_input_embeddings().weight.mul_(1.5)
    assert costs.differ(group, KIND).startswith("together its first loss is ")
    assert costs.differ(learners(world), KIND) is None
    assert costs.differ(group, KIND) is None  # looked at once per kind


@pytest.mark.parametrize(("slowness", "pays"), [(1.05, True), (1.3, False)])
def test_whether_together_pays_is_measured_once_and_by_the_fastest_step(slowness, pays, world, monkeypatch):
    """By a clock that steps turn: alone 10 ms per token, together so many times that, and once the machine is busy."""
    now, busy = [0.0], [10.0, 5.0, 0.0, 0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    usual = Together._step

    def step(self):
        before = [one.padded_tokens for one in self.learners]
        done = usual(self)
        tokens = sum(one.padded_tokens - b for one, b in zip(self.learners, before, strict=True))
        now[0] += slowness * 0.010 * tokens + busy.pop(0)
        return done

    monkeypatch.setattr(Together, "_step", step)
    group, costs = learners(world), SoloCosts()
    solos = [Solo(trainable=1, seconds_per_token=0.010, peak_memory_bytes=1, step_memory_bytes=1)] * 3
    reason = None if pays else "together, steps took 1.3 times as long as one trial after the other"
    assert costs.slower(KIND) is None
    assert costs.lose(group, KIND, solos) == reason
    assert costs.lose(group, KIND, solos) == costs.slower(KIND) == reason
    assert busy == []
