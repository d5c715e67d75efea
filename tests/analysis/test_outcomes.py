from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis import outcomes as metrics

number = st.floats(-1e6, 1e6)


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
