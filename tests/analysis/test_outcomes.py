from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis import outcomes as metrics
from harness.database.ingest import connect, ingest
from harness.records.paths import Paths
from harness.records.trial import Score
from tests.fabricate import fabricate

ACCURACY = Score(
    task="facts", split="test", metric="acc", value=0.9, stderr=0.01, n=100, higher_is_better=True, comparability="k"
)
LOSS = Score(
    task="stories",
    split="test",
    metric="perplexity",
    value=5.0,
    stderr=0.1,
    n=100,
    higher_is_better=False,
    comparability="k",
)
number = st.floats(-1e6, 1e6)


def test_forgetting_is_positive_when_something_was_lost() -> None:
    assert metrics.forgetting(ACCURACY, replace(ACCURACY, value=0.7)) == pytest.approx(0.2)
    assert metrics.forgetting(LOSS, replace(LOSS, value=6.5)) == pytest.approx(1.5)
    assert metrics.gain(LOSS, replace(LOSS, value=4.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("change", [{"comparability": "x"}, {"split": "validation"}, {"task": "t"}, {"metric": "f1"}])
def test_scores_that_differ_in_kind_are_not_compared(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="comparability"):
        metrics.forgetting(ACCURACY, replace(ACCURACY, **change))


@given(number, number, st.booleans())
def test_no_change_is_exactly_zero_and_order_flips_the_sign(a: float, b: float, higher: bool) -> None:
    old, new = (replace(ACCURACY, value=v, higher_is_better=higher) for v in (a, b))
    assert str(metrics.forgetting(old, old)) == "0.0"
    assert metrics.forgetting(old, new) == -metrics.forgetting(new, old)


def test_a_suite_counts_points_not_nats() -> None:
    suite = metrics.suite_forgetting(
        [ACCURACY, replace(ACCURACY, task="copy", value=1.0), LOSS],
        [replace(ACCURACY, value=0.8), replace(ACCURACY, task="copy", value=0.7), replace(LOSS, value=50.0)],
    )
    assert suite
    assert (suite.worst, suite.mean, suite.worst_task) == (pytest.approx(0.3), pytest.approx(0.2), "copy")
    losses = metrics.suite_forgetting([LOSS], [replace(LOSS, value=7.0)])
    assert losses
    assert losses.worst == 2.0
    assert metrics.suite_forgetting([], [ACCURACY]) is None
    assert metrics.suite_forgetting([ACCURACY], [replace(ACCURACY, comparability="other")]) is None


def test_the_database_says_the_same(paths: Paths) -> None:
    made = fabricate(paths)
    ingest(paths)
    bases = [s for r in made.results if r.config.steps == 0 for s in r.scores[1:]]
    with connect(paths) as database:
        found = dict(database.execute("SELECT key, worst FROM worst_forgetting").fetchall())
    for result in made.results:
        suite = metrics.suite_forgetting(bases, result.scores[1:])
        if result.config.steps and suite:
            assert found[result.config.key] == pytest.approx(suite.worst)
    assert len(found) > 40


def test_regret_by_hand() -> None:
    assert metrics.simple_regret(0.8, 0.6) == pytest.approx(0.2)
    assert metrics.simple_regret(0.6, 0.8) == 0.0
    assert metrics.normalized_regret(0.8, 0.6, 0.4) == pytest.approx(0.5)
    assert metrics.normalized_regret(0.4, 0.4, 0.4) is None


def test_backward_transfer_by_hand() -> None:
    assert metrics.backward_transfer([0.9, 0.8], [0.5, 0.9]) == pytest.approx(-0.15)  # (-.4 + .1) / 2
    assert metrics.backward_transfer([], []) is None
    with pytest.raises(ValueError, match="both scores"):
        metrics.backward_transfer([1.0], [])


def test_frontier_by_hand() -> None:
    points = [[1, 5], [2, 2], [5, 1], [3, 3], [2, 2], [np.nan, 0]]
    assert metrics.frontier(points).tolist() == [True, True, True, False, True, True]
    assert metrics.frontier(np.empty((0, 3))).tolist() == []


@given(st.lists(st.tuples(number, number, number), min_size=1, max_size=20))
def test_frontier_is_never_empty_and_dominates_the_rest(points: list[tuple[float, float, float]]) -> None:
    mask, array = metrics.frontier(points), np.array(points)
    assert mask.any()
    for point in array[~mask]:
        assert any((keeper <= point).all() and (keeper < point).any() for keeper in array[mask])


def test_curve_area_by_hand() -> None:
    assert metrics.curve_area([0.0, 0.5, 1.0], [0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert metrics.curve_area([0.5, 1.0], [0.2, 0.4]) == pytest.approx(0.3)
    assert metrics.curve_area([1.0], [0.7]) == 0.7
    assert metrics.curve_area([], []) is None
    with pytest.raises(ValueError, match="rise"):
        metrics.curve_area([1.0, 0.5], [0.1, 0.2])
