"""DFT: its loss by hand and TRL's, and training together."""

import math
from types import SimpleNamespace

import pytest

from harness.plugins import load
from harness.training.trl import run_trainer
from tests.tiny import ROWS, attached, stage, train
from tests.training.test_preference_losses import said


def test_dft_by_hand():
    """Tokens of probability 1/2 and 1/8."""
    (found,) = load("objectives", "dft")().loss(said([-math.log(2), -math.log(8)]), [SimpleNamespace()]).tolist()
    assert found == pytest.approx(math.log(2) / 2 + math.log(8) / 8, abs=1e-9)


def test_the_loss_is_trls(world, monkeypatch):
    """One batch of all rows, on a model whose tokens differ in probability; the second loss follows from the gradient."""
    made = stage("full", "dft", learning_rate=1e-3, batch_size=8, schedule="constant", warmup_share=0.0)

    def ready():
        one, _ = attached(world.llama, made, 2, ROWS)
        for parameter in one.model.parameters():
            parameter.data.mul_(3)
        return one

    ours = train(ready())[0]
    monkeypatch.setattr(load("objectives", "dft"), "fuses", False)
    one = ready()
    run_trainer(one, lambda: None)
    theirs = [entry["loss"] for entry in one.trainer.state.log_history if "loss" in entry]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_together_is_alone(world):
    def learners():
        rates = (1e-3, 2e-3, 5e-4)
        return [
            attached(world.llama, stage("lora", "dft", learning_rate=r), 10, ROWS, seed=n)[0]
            for n, r in enumerate(rates)
        ]

    alone = [curve for one in learners() for curve in train(one)]
    for ours, theirs in zip(train(*learners()), alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
