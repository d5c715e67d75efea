"""What a plan promises is what the procedure finds."""

from __future__ import annotations

import numpy as np
import pytest

from harness.analysis import power
from harness.analysis.comparison import Question, Table
from harness.analysis.noise import errors_of, sample_of, seed_noise
from harness.analysis.power import INTERACTION, MOST_ITEMS, REST, Contest, detectable
from harness.analysis.verdict import ALPHA


def test_the_lead_is_found_as_often_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole tables are drawn and judged; three standard errors of both simulations are .04."""
    families, runs, items, seed_sd = 3, 5, 200, 0.02
    studies, promised = 1500, 2000
    monkeypatch.setattr(power, "STUDIES", promised)
    power._chance.cache_clear()
    lead = detectable.__wrapped__(families=families, runs=runs, items=items, seed_sd=seed_sd)
    power._chance.cache_clear()
    rng, found = np.random.default_rng(3), 0
    for _ in range(studies):
        scores = {
            str(f): lead * (f == 0)
            + rng.normal(0, seed_sd, (runs, 1))
            + rng.normal(0, (INTERACTION / 2) ** 0.5, (1, items))
            + rng.normal(0, REST**0.5, (runs, items))
            for f in range(families)
        }
        sample = sample_of(scores)
        [noise] = seed_noise([sample])
        table = Table(question=Question(scores=scores), sample=sample, errors=errors_of(sample, noise))
        found += table.leader == "0" and table.p_use() <= ALPHA  # of one task that is `judge`, less what else it says
    error = (0.8 * 0.2 * (1 / studies + 1 / promised)) ** 0.5
    assert found / studies == pytest.approx(0.8, abs=3 * error)
    assert error < 0.014


def test_more_seeds_or_items_find_less_and_more_tasks_ask_for_more() -> None:
    few = detectable(families=3, runs=3, items=200, seed_sd=0.02)
    assert detectable(families=3, runs=6, items=200, seed_sd=0.02) < few
    assert detectable(families=3, runs=3, items=800, seed_sd=0.02) < few
    assert detectable(families=3, runs=3, items=200, seed_sd=0.02, tasks=4) > few
    # a task more asks for a stricter test, however many there are
    assert detectable(families=3, runs=3, items=200, seed_sd=0.02, tasks=40) > detectable(
        families=3, runs=3, items=200, seed_sd=0.02, tasks=10
    )
    assert detectable(families=3, runs=1, items=200, seed_sd=0.02) is None


CONTEST = Contest(families=3, seed_sd=0.02)


def test_fewest_runs_are_enough_and_one_fewer_is_not() -> None:
    runs = CONTEST.fewest_runs(0.05, 200)
    assert CONTEST.detectable(runs, 200) <= 0.05 < CONTEST.detectable(runs - 1, 200)
    # with 200 items alone the error is (.01 / 200)^.5 = .0071, of which 2.8 are needed
    assert CONTEST.fewest_runs(0.019, 200) is None
    alike = Contest(families=3, seed_sd=0.02, sampled=False)
    few = alike.fewest_runs(0.05, None)
    assert few < runs
    assert detectable(families=3, runs=few, items=None, seed_sd=0.02) <= 0.05


def test_fewest_items_are_enough_and_a_tenth_fewer_are_not() -> None:
    for start in (20, 5000):
        items = CONTEST.fewest_items(0.05, 5, start)
        assert CONTEST.detectable(5, items) <= 0.05 < CONTEST.detectable(5, round(0.9 * items))
    # three seeds alone bring an error of (2 * .02^2 / 3)^.5 = .016
    assert CONTEST.fewest_items(0.03, 3, 200) is None


def test_the_cheapest_size_is_enough_and_no_other_is_much_cheaper() -> None:
    def price(runs: int, items: int) -> float:
        return runs * (60.0 + 0.1 * items)

    runs, items = CONTEST.cheapest(0.05, 200, MOST_ITEMS, price)
    assert CONTEST.detectable(runs, items) <= 0.05
    others = {own: CONTEST.fewest_items(0.05, own, items) for own in (4, 5, 6, 8, 10, 13)}
    assert price(runs, items) <= 1.05 * min(price(own, needed) for own, needed in others.items() if needed)
    # where items cost nothing, fewer seeds with more items; where there are few items, more seeds
    assert CONTEST.cheapest(0.05, 200, MOST_ITEMS, lambda runs, items: runs)[0] < runs
    assert CONTEST.cheapest(0.05, 200, items // 2, price)[0] > runs
    assert CONTEST.cheapest(0.019, 200, 200, price) is None
