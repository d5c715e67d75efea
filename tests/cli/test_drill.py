"""The drill passes where the machinery works, and fails where it does not."""

from dataclasses import replace

import pytest

from harness.cli.drill import TRIALS, Drilled, practise

PASSED = Drilled("local", TRIALS, ran_twice=1, workers_killed=1, drivers_killed=1, seconds=1.0)


def test_the_drill_passes_here_and_leaves_nothing(tmp_path):
    outcome = practise("local", {}, tmp_path)
    assert outcome.passed, outcome.text()
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.slurm
def test_the_drill_passes_on_slurm(slurm, tmp_path_factory):
    outcome = practise("slurm", {"time_min": "5"}, tmp_path_factory.mktemp("drill"))
    assert outcome.passed, outcome.text()


@pytest.mark.parametrize(
    "change",
    [{"complete": TRIALS - 1}, {"ran_twice": 0}, {"ran_twice": 2}, {"workers_killed": 0}, {"drivers_killed": 0}],
)
def test_anything_lost_repeated_or_not_tried_fails_the_drill(change):
    assert not replace(PASSED, **change).passed
    assert "FAILED" in replace(PASSED, **change).text()
