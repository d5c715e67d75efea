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


def test_bootstrap_agrees_with_theory_on_many_values() -> None:
    data = np.random.default_rng(0).exponential(size=400)
    interval = s.bootstrap_interval(list(data), seed=3)
    assert interval
    assert interval.low is not None
    assert interval.high is not None
    half = 1.96 * data.std(ddof=1) / 20
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.1)
    assert interval.high - interval.mean > interval.mean - interval.low  # skewed data, skewed interval
    assert interval == s.bootstrap_interval(list(data), seed=3)
    assert s.bootstrap_interval([0.3, 0.3, 0.3]) == s.mean_interval([0.3, 0.3, 0.3])


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.96: centre (.8 + 3.8416/20) / 1.38416 = .71674, half 1.96/1.38416 sqrt(.016 + .009604) = .22658
    interval = s.wilson_interval(8, 10)
    assert interval
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    none, every = s.wilson_interval(0, 10), s.wilson_interval(10, 10)
    assert none
    assert every
    assert none.low == 0.0
    assert every.high == 1.0
    assert s.wilson_interval(0, 0) is None


def test_paired_t_by_hand() -> None:
    # differences 1, 2, 3: t = 2 / (1 / sqrt 3) = 3.4641, 2 degrees: two-sided p = .0742
    test = s.paired_t_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert test
    assert test.p_value == pytest.approx(0.0742, abs=1e-4)
    assert test.difference == 2.0
    assert s.paired_t_test([], []) is None
    assert s.paired_t_test([1.0], [0.5]) == s.PairedTest(
        difference=0.5, low=None, high=None, p_value=None, n=1, method="t"
    )
    same = s.paired_t_test([1.0, 2.0], [1.0, 2.0])
    assert same
    assert same.p_value == 1.0
    # five times .1, apart from rounding: no spread, so nothing says how likely chance would do that
    equal = s.paired_t_test([0.6, 0.7, 0.8, 0.9, 1.1], [0.5, 0.6, 0.7, 0.8, 1.0])
    assert equal
    assert equal.difference == pytest.approx(0.1)
    assert (equal.p_value, equal.low, equal.high, equal.n) == (None, None, None, 5)
    with pytest.raises(ValueError, match="as many"):
        s.paired_t_test([1.0], [])


def test_sign_flips_are_exact() -> None:
    # all five differences positive: of 32 assignments two are as extreme
    test = s.sign_flip_test([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5)
    assert test
    assert test.p_value == 2 / 32
    # 1, 1, -1: |sum| >= 1 in all 8 assignments
    tied = s.sign_flip_test([0.1, 0.1, 0.0], [0.0, 0.0, 0.1])
    assert tied
    assert tied.p_value == 1.0
    assert s.sign_flip_test([], []) is None


@given(values, st.integers(0, 3))
def test_tests_do_not_care_which_comes_first(data: list[float], shift: int) -> None:
    other = [v + shift for v in reversed(data)]
    for test in (s.paired_t_test, s.sign_flip_test):
        forward, backward = test(data, other), test(other, data)
        assert forward
        assert backward
        assert (forward.p_value is None) is (backward.p_value is None)
        assert (forward.p_value or 0) == pytest.approx(backward.p_value or 0)
        assert 0 <= (forward.p_value or 0) <= 1
        assert forward.difference == pytest.approx(-backward.difference)


def test_many_pairs_agree_with_the_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = list(rng.normal(0.4, 1, 30)), list(rng.normal(0, 1, 30))
    flips, t = s.sign_flip_test(a, b), s.paired_t_test(a, b)
    assert flips
    assert t
    assert flips.p_value == pytest.approx(t.p_value, abs=0.02)


def test_items_of_one_model_are_not_independent() -> None:
    """Seeds differ by .1 and share a true difference of 0: items alone would see a difference in most draws."""
    rng, false_alarms = np.random.default_rng(0), 0
    for _ in range(40):
        shift = rng.normal(0, 0.1, size=(2, 5, 1))
        outcomes = rng.random((2, 5, 400)) < 0.5 + shift
        test = s.paired_item_test(outcomes[0], outcomes[1])
        assert test
        assert test.p_value is not None
        false_alarms += test.p_value < 0.05
    assert false_alarms / 40 < 0.25  # 5 seeds only: too many, but far from the two thirds of item-only tests
    assert s.paired_item_test(np.empty((0, 0)), np.empty((0, 0))) is None
    with pytest.raises(ValueError, match="same shape"):
        s.paired_item_test([[1.0]], [1.0])


def test_items_find_a_real_difference() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((5, 500)) < 0.7, rng.random((5, 500)) < 0.6
    test = s.paired_item_test(a, b)
    assert test
    assert test.low is not None
    assert 0 < test.low < 0.1 < (test.high or 0)


def test_holm_by_hand() -> None:
    # Sorted .01 .03 .04 times 3 2 1, then never falling: .03 .06 .06
    assert s.holm([0.04, 0.01, 0.03]) == [pytest.approx(v) for v in (0.06, 0.03, 0.06)]
    assert s.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=10))
def test_holm_never_lowers_a_p_value(p_values: list[float]) -> None:
    assert all(p <= q <= 1 for p, q in zip(p_values, s.holm(p_values), strict=True))


def test_detectable_difference_matches_published_power_tables() -> None:
    # a paired t test on 34 pairs finds d = .5 with power .807 (G*Power, Faul et al. 2007); d is in units of the
    # difference's sd, which is sqrt 2 seed sds
    found = s.minimal_detectable_difference(34, 1 / 2**0.5, power=0.8077777)
    assert found == pytest.approx(0.5, abs=1e-3)
    assert s.minimal_detectable_difference(1, 0.1) is None


def test_items_add_the_worst_case_of_a_proportion_to_what_seeds_leave() -> None:
    """Two runs on n items differ with variance 2 x .25 / n, which is as if each seed's variance were 5 x .25 / n more.

    For five seeds of standard deviation 0.02 and 100 items: (.02^2 + 5 x .25 / 100) per seed, hence .1136.
    """
    found = s.minimal_detectable_difference(5, 0.02, n_items=100)
    assert found == pytest.approx(s.minimal_detectable_difference(5, (0.02**2 + 5 * 0.25 / 100) ** 0.5), rel=1e-6)


def test_detectable_difference_is_detected_as_often_as_promised() -> None:
    difference, rng = s.minimal_detectable_difference(5, 0.02), np.random.default_rng(0)
    assert difference
    found = 0
    for _ in range(1500):
        test = s.paired_t_test(list(rng.normal(difference, 0.02, 5)), list(rng.normal(0, 0.02, 5)))
        found += bool(test and test.p_value is not None and test.p_value < 0.05)
    assert found / 1500 == pytest.approx(0.8, abs=0.035)


def test_more_seeds_or_items_detect_less() -> None:
    sizes = [s.minimal_detectable_difference(n, 0.02) or 0 for n in (2, 3, 5, 10)]
    assert sizes == sorted(sizes, reverse=True)
    few, many = (s.minimal_detectable_difference(5, 0.02, n_items=n) or 0 for n in (100, 10_000))
    assert few > many > sizes[2]
