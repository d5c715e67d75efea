"""A device that refuses memory from a size on: passes become smaller, and the next trials of the kind know it."""

import dataclasses

import pytest
import torch

from harness.records.paths import Paths
from harness.training.alone import Alone
from harness.training.together import Together
from harness.trial.group import Workspace, run_pack
from harness.trial.process import WarmProcess
from tests.tiny import config, save_gpt2, stage


@pytest.fixture
def workspace(world, tmp_path):
    return Workspace(Paths(tmp_path / "small"), (world.tasks,), device="cpu")


class Device:
    """Refuses passes of more rows than it holds; where activations are kept, of more than `kept`."""

    def __init__(self, kind, rows, kept=10**6):
        self.usual, self.rows, self.kept, self.refused, self.shown = kind.forward, rows, kept, 0, []

    def forward(self, session, batch, seeds):
        rows, again = len(batch.input_ids), session.learners[0].settings.recomputes
        if rows > (self.rows if again else min(self.rows, self.kept)):
            self.refused += 1
            raise torch.OutOfMemoryError("tried to allocate too much")
        self.shown.append(rows)
        return self.usual(session, batch, seeds)

    def fit(self, monkeypatch, kind):
        monkeypatch.setattr(kind, "forward", lambda session, batch, seeds: self.forward(session, batch, seeds))
        return self


def trials(world, **changes):
    made = stage("lora", batch_size=8, learning_rate=1e-3)
    return [config(world, made, seed=seed, steps=4, fractions=(0.5, 1.0), **changes) for seed in (1, 2)]


def losses(result):
    return [point.loss for point in result.curve]


def test_a_pass_that_does_not_fit_is_cut_and_the_next_trial_knows(world, workspace, tmp_path, monkeypatch):
    first, second = trials(world)
    plenty = run_pack([first], dataclasses.replace(workspace, paths=Paths(tmp_path / "plenty")))[0]
    device, process = Device(Alone, rows=2).fit(monkeypatch, Alone), WarmProcess()
    cut = run_pack([first], workspace, process)[0]
    assert cut.status == "complete", cut.reason
    assert device.refused == 2  # of eight and four rows
    assert max(device.shown) == 2
    assert cut.provenance.effective.stages[0].pass_examples == 2
    assert cut.provenance.effective.stages[0].batch == plenty.provenance.effective.stages[0].batch == (8, 1)
    assert losses(cut) == pytest.approx(losses(plenty), abs=1e-5)
    assert cut.cost.tokens == plenty.cost.tokens
    assert len([note for note in cut.notes if "cut into smaller ones" in note]) == 1
    assert run_pack([second], workspace, process)[0].status == "complete"
    assert device.refused == 2
    other = dataclasses.replace(second, task=config(world, task="echo").task)
    run_pack([other], workspace, process)
    assert device.refused == 4  # whose rows are others


def test_after_single_examples_layers_are_computed_again(world, workspace, monkeypatch):
    device, process = Device(Alone, rows=1, kept=0).fit(monkeypatch, Alone), WarmProcess()
    first, second = (run_pack([trial], workspace, process)[0] for trial in trials(world))
    assert first.status == second.status == "complete", first.reason
    assert device.refused == 4  # eight, four, two, and one that keeps activations
    settings = [result.provenance.effective.stages[0] for result in (first, second)]
    assert [(one.pass_examples, one.recomputes) for one in settings] == [(1, True)] * 2


def test_a_pass_that_draws_random_numbers_is_not_cut(world, workspace, tmp_path, monkeypatch):
    model = save_gpt2(tmp_path / "noisy", dropout=0.1)
    Device(Alone, rows=8, kept=0).fit(monkeypatch, Alone)
    settings = run_pack([trials(world, model=model)[0]], workspace)[0].provenance.effective.stages[0]
    assert (settings.pass_examples, settings.recomputes) == (None, True)


def test_a_pack_that_does_not_fit_is_not_tried_again(world, workspace, monkeypatch):
    device, process = Device(Together, rows=8).fit(monkeypatch, Together), WarmProcess()
    first = run_pack(trials(world), workspace, process)
    second = run_pack([dataclasses.replace(one, seed=one.seed + 10) for one in trials(world)], workspace, process)
    assert {result.status for result in (*first, *second)} == {"complete"}
    assert device.refused == 1
    assert "seen not to fit together" in second[0].provenance.effective.alone
