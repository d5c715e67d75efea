from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis import statistics as s

values = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def test_mean_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, s = 1, t(.975; 2) = 4.3027, half = 4.3027 / sqrt 3 = 2.4842
    interval = s.mean_interval([1.0, 2.0, 3.0])
    assert interval
    assert interval.mean == 2.0
    assert interval.low == pytest.approx(2 - 2.4842, abs=1e-4)
    assert interval.high == pytest.approx(2 + 2.4842, abs=1e-4)
    assert s.mean_interval([]) is None
    assert s.mean_interval([0.5]) == s.Interval(mean=0.5, low=None, high=None, n=1)


def test_t_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = [i.low < 0 < i.high for _ in range(2000) if (i := s.mean_interval(list(rng.normal(size=5)))) and i.low]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.015)  # three standard errors of 2,000 draws


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04 times 3 2 1, then never falling: .03 .06 .06
    assert s.holm([0.04, 0.01, 0.03]) == [pytest.approx(v) for v in (0.06, 0.03, 0.06)]
    assert s.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_never_lowers_a_p_value(p_values: list[float]) -> None:
    assert all(p <= q <= 1 for p, q in zip(p_values, s.holm(p_values), strict=True))
