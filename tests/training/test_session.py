"""The loop itself: how seldom it looks at losses changes nothing, and what it has done when a step fails is known."""

import dataclasses

import pytest
import torch

from harness.nn import batches
from harness.plugins import load, names
from harness.records.trial import Ended, TrialStatus
from harness.tasks.training_rows import Row
from harness.training import session as sessions
from harness.training.alone import Alone
from harness.training.together import Together
from tests.tiny import attached, stage
from tests.training.pairs import made_up, shaken


def learners(world, steps=20):
    stages = [stage("lora", batch_size=2, rank=rank) for rank in (2, 4)]
    return [attached(world.gpt2, one, steps, seed=seed)[0] for seed, one in enumerate(stages)]


FUSING = [name for name in names("objectives") if load("objectives", name).fuses]


@pytest.mark.parametrize("objective", FUSING)
@pytest.mark.parametrize("together", [False, True])
def test_a_step_in_pieces_is_the_step(together, objective, world, monkeypatch):
    """Eight rows as up to four forward passes, where starting one costs nothing, or as one, where it costs a lot."""
    rows = made_up(30)
    passes = []
    for session in (Alone, Together):
        monkeypatch.setattr(session, "forward", counting(session.forward, passes))

    def run(overhead):
        passes.clear()
        monkeypatch.setitem(batches.OVERHEAD, "cpu", overhead)
        stages = [stage("lora", objective, batch_size=8, rank=rank, max_length=40) for rank in (2, 4)[: 1 + together]]
        group = [attached(world.gpt2, one, 4, rows, dtype=torch.float64)[0] for one in stages]
        session = Together(group) if together else Alone(group[0])
        session.advance(4)
        return losses(group), len(passes)

    (whole, once), (pieces, often) = run(10**9), run(0)
    assert once == 4 * (1 + (objective == "kto"))  # which is shown other answers apart
    plugin = load("objectives", objective)
    assert often == once if plugin.compares or plugin.packs else often > once
    for mine, other in zip(pieces, whole, strict=True):
        assert mine == pytest.approx(other, abs=1e-7)


def counting(forward, passes):
    def counted(self, batch, seeds):
        passes.append(batch.rows)
        return forward(self, batch, seeds)

    return counted


def test_a_step_that_draws_random_numbers_is_not_cut(world, monkeypatch):
    """What a mask is would depend on the neighbours' lengths."""
    monkeypatch.setitem(batches.OVERHEAD, "cpu", 0)
    passes = []
    monkeypatch.setattr(Alone, "forward", counting(Alone.forward, passes))
    Alone(attached(world.gpt2, stage("lora", batch_size=8, adapter_dropout=0.1), 5)[0]).advance(5)
    assert passes == [8] * 5


def test_every_pass_of_a_step_draws_numbers_of_its_own(world, monkeypatch):
    """Of equal rows: with the same mask both passes would say the same."""
    seen, usual = [], Alone.forward

    def forward(self, batch, seeds):
        seen.append(usual(self, batch, seeds))
        return seen[-1]

    monkeypatch.setattr(Alone, "forward", forward)
    made = stage("lora", batch_size=1, gradient_accumulation=2, adapter_dropout=0.5)
    one, _ = attached(world.gpt2, made, 1, [Row(prompt="1:", completion=" abc")] * 4)
    Alone(shaken(one)).advance(1)
    assert len(seen) == 2
    assert not torch.allclose(*seen, atol=1e-4)


def losses(group):
    return [(one.step, one.losses.steps, one.losses.total, one.watch.tally.tokens, one.padded_tokens) for one in group]


@pytest.mark.parametrize("together", [False, True])
def test_looking_seldom_is_looking_often(together, world, monkeypatch):
    """On a GPU every look waits, so losses are read every sixteen steps there."""

    def run():
        group = learners(world) if together else learners(world)[:1]
        session = Together(group) if together else Alone(group[0])
        session.advance(13)
        session.advance(7)
        session.close()
        return losses(group)

    often = run()
    monkeypatch.setitem(sessions.CHECK_EVERY, "cpu", 16)
    assert run() == often


def test_a_loss_that_is_not_finite_is_named_by_its_step_however_late_it_is_seen(world, monkeypatch):
    monkeypatch.setitem(sessions.CHECK_EVERY, "cpu", 16)
    group = learners(world, steps=40)
    usual = Together.forward

    def forward(self, batch, seeds):
        found = usual(self, batch, seeds)
        return torch.where(torch.tensor([[False], [group[1].step == 4]]), torch.nan, found)

    monkeypatch.setattr(Together, "forward", forward)
    session = Together(group)
    session.advance(40)
    assert [one.step for one in group] == [16, 16]
    assert group[1].failure == Ended(TrialStatus.DIVERGED, "loss became nan at step 5: lower the learning rate")
    assert group[0].failure is None
    assert group[0].losses.steps == 16


def test_steps_before_one_that_fails_are_not_lost(world, monkeypatch):
    """Also those whose losses nobody had looked at yet; the failed one is not counted."""
    monkeypatch.setitem(sessions.CHECK_EVERY, "cpu", 16)
    whole, _ = learners(world)
    one, _ = learners(world)
    Alone(whole).advance(5)
    session, usual = Alone(one), Alone.forward

    def forward(self, batch, seeds):
        if one.step == 5:
            raise torch.OutOfMemoryError("too much")
        return usual(self, batch, seeds)

    monkeypatch.setattr(Alone, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        session.advance(20)
    assert losses([one]) == losses([whole])


def test_a_trial_whose_time_is_up_leaves_the_others(world):
    group = learners(world)
    group[0] = dataclasses.replace(group[0], watch=dataclasses.replace(group[0].watch, time_limit_s=5.0))
    group[0].watch.meter.seconds["load"] = 5.1
    session = Together(group)
    session.advance(20)
    assert [one.step for one in group] == [1, 1]
    assert "the trial's 5 s were used up at step 1" in group[0].failure.reason
    assert group[1].failure is None
