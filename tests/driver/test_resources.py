"""What a worker's job is given follows from the forecasts of the trials that it may take."""

import dataclasses

import pytest

from harness.cost.memory import CONTEXT_BYTES, PROCESS_BYTES, Memory
from harness.driver import resources
from harness.driver.forecast import Past, forecast, occasion_of
from harness.driver.memory import Needs
from harness.driver.resources import foresee
from harness.driver.trials import base_proposals
from tests.driver import standin

HOUR = 3600.0


@pytest.fixture
def experiment(tmp_path):
    """Two families of five trials that train together, two workers."""
    spec = standin.study(tasks=["one"], families=standin.TOGETHER, budget={"trials": 5, "steps": 9})
    return standin.experiment(spec, standin.site(tmp_path, "local"))


def memory(**parts):
    sizes = dict.fromkeys([f.name for f in dataclasses.fields(Memory) if f.type == "float"], 0.0)
    return Memory(**(sizes | parts))


def test_a_job_lasts_for_its_longest_pack_and_for_its_share_of_the_work(experiment, monkeypatch):
    """An hour a trial by a formula, which may be wrong by three; five trials are a pack, two of confirm another."""
    one = forecast(occasion_of(experiment, next(base_proposals(experiment)).config), Past())
    monkeypatch.setattr(resources, "forecast", lambda *_: dataclasses.replace(one, seconds=HOUR))
    trials = 2 + 2 * (5 + experiment.spec.confirm.seeds)
    foreseen = foresee(experiment)
    assert foreseen.pack_s == 3 * HOUR * 5
    assert foreseen.worker_s == 3 * HOUR * trials / 2
    monkeypatch.setattr(Past, "like", lambda *_: [object()])
    assert foresee(experiment).pack_s == 1.5 * HOUR * 5


def test_a_budget_in_seconds_says_how_many_trials_there_are(experiment, monkeypatch):
    spec = standin.study(tasks=["one"], families=standin.TOGETHER, budget={"gpu_seconds": 10 * HOUR, "steps": 9})
    one = forecast(occasion_of(experiment, next(base_proposals(experiment)).config), Past())
    monkeypatch.setattr(resources, "forecast", lambda *_: dataclasses.replace(one, seconds=HOUR))
    foreseen = foresee(standin.experiment(spec, experiment.site))
    assert foreseen.pack_s == 3 * HOUR * 3  # ten hours are three trials of three hours


def test_main_memory_holds_a_pack_that_shares_its_base(experiment, monkeypatch):
    """On a CPU all of it, tensors with a tenth for gaps; beside a GPU what is loaded, and what is saved."""
    one = memory(weights=8e9, trained=1e9, moments=2e9, peak=13e9)
    monkeypatch.setattr(Needs, "of", lambda self, config: one)
    assert foresee(experiment).memory_bytes == pytest.approx(1.25 * (PROCESS_BYTES + 1.1 * (8e9 + 5 * 5e9)))
    on_gpu = dataclasses.replace(experiment, site=dataclasses.replace(experiment.site, device="cuda"))
    beside = PROCESS_BYTES + 2 * CONTEXT_BYTES + 8e9 + 5 * 3e9
    assert foresee(on_gpu).memory_bytes == pytest.approx(1.25 * beside)


def test_nothing_is_foreseen_of_memory_where_no_base_is_known(experiment):
    assert foresee(experiment).memory_bytes is None
