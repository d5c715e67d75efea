"""Whether packs train together is no matter of how busy the machine is that tests them."""

import pytest


@pytest.fixture(autouse=True)
def together_pays(monkeypatch):
    """Trials that can train together do; tests/training/test_solo_cost.py measures whether it pays."""
    monkeypatch.setattr("harness.training.solo_cost._times_as_long", lambda learners, solos: 0.5)
