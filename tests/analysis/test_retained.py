"""Statuses of skills, from numbers that follow by hand, from scipy, and from simulated studies whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy import stats

from harness.analysis import retained
from harness.analysis.retained import Measure, Status, combined, flips, noise_of

judge = partial(retained.judge, smallest=0.05)


def accuracy(base: np.ndarray, runs: np.ndarray, chance: float = 0.0) -> Measure:
    """Of items that are right or wrong: shapes (items,) and (runs, items)."""
    lost = base - runs
    noise = noise_of(list(lost.mean(1)), lost.mean(0))
    return Measure(name="acc", loss=float(lost.mean()), noise=noise, headroom=float(base.mean()) - chance)


def unlikelier(bits: np.ndarray) -> Measure:
    """Of bits per byte that items got more unlikely by, shape (runs, items)."""
    nats = bits * math.log(2)
    noise = noise_of(list(nats.mean(1)), nats.mean(0))
    return Measure(name="bits", loss=float(nats.mean()), noise=noise, headroom=math.inf, in_nats=True)


def right(count: int, of: int, runs: int = 3) -> np.ndarray:
    """The first `count` items are right, in every run."""
    return np.tile(np.arange(of) < count, (runs, 1)).astype(float)


def test_chance_that_cannot_fall_hides_no_loss_that_rose():
    """The published case: 25% of 400 items with four choices before and after; 1.82, then 2.19 bits per byte."""
    base, tuned = right(100, 400)[0], right(100, 400)
    bits = np.random.default_rng(0).normal(0.37, 0.4, (3, 400))
    at_chance = accuracy(base, tuned, chance=0.25)
    (judged,) = judge([[at_chance, unlikelier(bits - bits.mean() + 0.37)]])
    assert (judged.status, judged.measure.name) == (Status.LOST, "bits")
    assert judged.measure.share(judged.measure.loss) == pytest.approx(1 - 2**-0.37)  # 22.6% of each byte's probability
    assert judged.p is not None
    assert judged.p < 1e-6
    (alone,) = judge([[at_chance]])
    assert alone.status is Status.NO_HEADROOM  # never "kept", never 0 lost


def test_the_published_case_of_facts_beside_skills_that_were_never_there():
    facts = accuracy(right(143, 200)[0], right(49, 200))  # .715, then .245
    nothing = accuracy(right(0, 200)[0], right(0, 200))
    found = judge([[facts], [nothing], [nothing]])
    assert [one.status for one in found] == [Status.LOST, Status.NO_HEADROOM, Status.NO_HEADROOM]
    assert found[0].measure.loss == pytest.approx(0.47)
    assert found[0].low < 0.47 < found[0].high


def test_worse_than_chance_is_lost_where_there_is_no_headroom():
    """A model that answers nothing any more scores 0 where guessing gives 25%."""
    (judged,) = judge([[accuracy(right(100, 400)[0], right(0, 400), chance=0.25)]])
    assert judged.status is Status.LOST


def test_kept_only_where_a_loss_that_matters_would_have_been_seen():
    # All answers alike: two pseudo-items of 1/3 in 202 give (2/9)/202 = .0011; its root over 200 is .00235, and 1.65 errors .0039
    (many,) = judge([[accuracy(right(150, 200)[0], right(150, 200))]])
    assert many.status is Status.KEPT
    # with 5 items: (2/9)/6/5 = .0074, root .086; t(.95; 4) = 2.13 errors are .18 > .05
    (few,) = judge([[accuracy(right(4, 5)[0], right(4, 5))]])
    assert few.status is Status.TOO_FEW
    # (.05/2.8)^2 = .000319 = 5 x .0074 / items
    assert few.items_needed == math.ceil(5 * (2 / 9 / 6 / 5) / (0.05 / 2.8) ** 2)


def test_what_does_not_matter_is_kept_even_where_it_is_beyond_noise():
    rng = np.random.default_rng(1)
    (judged,) = judge([[unlikelier(rng.normal(0.01, 0.02, (3, 5000)))]])
    assert judged.p is not None
    assert judged.p < 0.001
    assert judged.status is Status.KEPT


def test_seeds_that_scatter_leave_it_open_however_many_items_there_are():
    items = np.zeros(2000)
    noise = noise_of([0.10, -0.08, 0.03], items + 0.0166)
    (judged,) = judge([[Measure(name="acc", loss=0.0166, noise=noise, headroom=0.5)]])
    assert (judged.status, judged.items_needed) == (Status.CANNOT_TELL, None)
    assert "scatter" in judged.reason


def test_one_seed_is_never_kept_but_one_model_may_be():
    one = accuracy(right(150, 2000)[0], right(150, 2000, runs=1))
    assert judge([[one]])[0].status is Status.CANNOT_TELL
    assert judge([[one]], single_models=True)[0].status is Status.KEPT


def test_without_items_or_a_scale_nothing_is_kept():
    blind = Measure(name="acc", loss=0.0, noise=None, headroom=0.5)
    unscaled = Measure(name="elo", loss=1.0, noise=noise_of([1.0, 1.1], np.arange(9.0) - 3), headroom=None)
    assert [one.status for one in judge([[blind], [unscaled]])] == [Status.CANNOT_TELL, Status.CANNOT_TELL]
    assert noise_of([0.1, 0.2], np.array([0.1])) is None


def test_one_run_of_real_values_is_students_test_of_its_items_and_two_more():
    """The two stand one unit beside the mean on either side, and count in the variance alone."""
    half = np.random.default_rng(2).normal(0.0, 1.0, 25)
    lost = 0.1 + np.concatenate([half, -half])  # without skew
    noise = noise_of([float(lost.mean())], lost)
    measure = Measure(name="bits", loss=float(lost.mean()), noise=noise, headroom=math.inf)
    variance = (((lost - lost.mean()) ** 2).sum() + 2) / 51
    assert measure.p == pytest.approx(2 * stats.t.sf(lost.mean() / math.sqrt(variance / 50), 49))
    plain = stats.ttest_1samp(lost, 0)
    assert measure.p == pytest.approx(plain.pvalue, abs=0.01)
    assert measure.bounds(0.95) == pytest.approx(tuple(plain.confidence_interval(0.95)), abs=0.01)


def test_degrees_of_freedom_by_hand():
    # (3e-4)^2 / ((1e-4)^2 / 2 + (2e-4)^2 / 100) = 9e-8 / 5.4e-9
    assert combined(1e-4, 2e-4, runs=3, count=101).df == pytest.approx(16.6667, rel=1e-4)


def test_all_claims_together_are_corrected():
    lost = np.random.default_rng(3).normal(0.25, 1.0, (1, 100))
    one = unlikelier(lost)
    alone, *_ = judge([[one]])
    many = judge([[one], *[[accuracy(right(150, 200)[0], right(150, 200))]] * 5])
    assert many[0].p == pytest.approx(6 * (alone.p or 0))


@pytest.mark.parametrize(("items", "runs"), [(30, 3), (200, 2), (1000, 5)])
def test_equal_models_are_rarely_called_lost_and_a_loss_that_matters_rarely_kept(items: int, runs: int):
    """Eight skills; an item's difficulty is its own, seeds move a whole model by 1.5 points."""
    rng = np.random.default_rng(4)
    lost = kept = 0
    studies = 150
    for _ in range(studies):
        easy = rng.beta(0.8, 0.8, (8, items))
        base = (rng.random((8, items)) < easy).astype(float)
        moved = rng.normal(0, 0.015, (8, runs, 1))
        equal = (rng.random((8, runs, items)) < np.clip(easy[:, None] + moved, 0, 1)).astype(float)
        found = judge([[accuracy(base[k], equal[k])] for k in range(8)])
        lost += any(one.status is Status.LOST for one in found)
        worse = (rng.random((runs, items)) < np.clip(easy[0] - 0.05 + moved[0], 0, 1)).astype(float)
        kept += judge([[accuracy(base[0], worse)]])[0].status is Status.KEPT
    assert lost / studies <= 0.08  # 5% and twice the error of 150 studies
    assert kept / studies <= 0.1


def test_flips_by_hand():
    base = np.array([1, 1, 0, 0, 1.0])
    tuned = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 1.0]])
    found = flips(base, tuned)
    # the first run: item 1 lost, item 3 gained; the second: items 1 and 2 lost
    assert (found.lost, found.gained, found.items, found.again) == (1.5, 0.5, 5, 0.0)
    assert flips(base * 0.5, tuned) is None


def test_a_skewed_loss_is_judged_by_halls_transformed_t():
    """t = 2 and skewness .3 of the mean: 2 + .3 * 4/3 + .09 * 8/27 + .3/6 = 2.476667."""
    noise = replace(combined(0.0, 1e-4, runs=1, count=100), third=0.3 * 1e-6)
    assert noise.skewness == pytest.approx(0.3)
    assert noise.tail(0.02) == pytest.approx(stats.t.sf(2.476667, 99), rel=1e-5)
    # a bound is the truth under which the measured loss would be as unlikely
    for beyond in (0.01, 0.05, 0.95, 0.99):
        away = (0.02 - noise.bound(0.02, beyond)) / noise.error
        freed = away + 0.3 * away**2 / 3 + 0.09 * away**3 / 27 + 0.05
        assert stats.t.sf(freed, 99) == pytest.approx(beyond)


def test_the_skewness_of_a_mean_is_that_of_its_items_over_the_root_of_their_number():
    items = np.random.default_rng(3).exponential(10.0, 400)  # so wide that two items of 1 more hardly count
    skewness = noise_of([float(items.mean())], items).skewness
    assert skewness == pytest.approx(stats.skew(items) / 20, rel=0.02)


def test_a_loss_of_exactly_the_margin_in_one_item_of_fifty_is_kept_in_one_study_of_twenty():
    """Plain t calls 9% of them kept."""
    rng, margin, kept = np.random.default_rng(5), -math.log(0.95), 0
    for _ in range(1500):
        lost = 0.1 * rng.standard_t(3, 200) + 50 * margin * (rng.random(200) < 1 / 50)
        noise = noise_of([float(lost.mean())], lost)
        kept += noise.bound(float(lost.mean()), 0.95) < margin
    assert kept / 1500 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)
