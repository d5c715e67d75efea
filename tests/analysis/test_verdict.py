"""Verdicts against hand-derived values, scipy and statsmodels, and what must not change them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.analysis import comparison
from harness.analysis.comparison import Question, Table
from harness.analysis.noise import SeedNoise, errors_of, sample_of, seed_noise
from harness.analysis.verdict import ONE_ITEM, ONE_SEED, Verdict, Word, across, judge
from harness.records.scale import Scale

SHARE = Scale(low=0.0, high=1.0)


def drawn(seed: int, families: int = 3, runs: int = 3, items: int = 60, lead: float = 0.0) -> dict[str, np.ndarray]:
    """Right and wrong answers; the first family is better by `lead`."""
    rng = np.random.default_rng(seed)
    easy = rng.uniform(0.1, 0.7, items)
    return {
        f"f{f}": (rng.random((runs, items)) < np.clip(easy + lead * (f == 0), 0, 1)).astype(float)
        for f in range(families)
    }


def question(scores: dict[str, np.ndarray], **fields: object) -> Question:
    return Question(**{"scores": scores, "scale": SHARE, **fields})


def runs_only(*families: list[float]) -> Table:
    """Runs that answer every item alike, with each family's own variance over seeds: no item noise is left."""
    sample = sample_of({f"f{i}": np.repeat(np.array(own)[:, None], 5, axis=1) for i, own in enumerate(families)})
    noise = SeedNoise(variances=sample.variances, degrees=sample.degrees.astype(float), total=1e12)
    return Table(question=Question(scores={}), sample=sample, errors=errors_of(sample, noise))


def test_without_item_noise_the_test_is_welchs() -> None:
    first, second = [0.51, 0.55, 0.62, 0.58], [0.44, 0.40, 0.52]
    found = runs_only(first, second)
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert found.errors.pair_degrees[0, 1] == pytest.approx(welch.df)
    assert found.p(0, 1) == pytest.approx(welch.pvalue)


def test_finished_models_are_compared_by_a_paired_t_test_over_items() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    [found] = judge([Question(scores={"a": first[None], "b": second[None]}, fixed=frozenset("ab"))])
    paired = stats.ttest_rel(first, second)
    [contrast] = found.against.values()
    assert contrast.p == pytest.approx(paired.pvalue)
    low, high = paired.confidence_interval(0.95)
    sign = 1 if found.leader == "a" else -1
    assert sorted((sign * contrast.difference.low, sign * contrast.difference.high)) == pytest.approx([low, high])


def test_equivalence_is_that_of_two_one_sided_tests() -> None:
    rng = np.random.default_rng(2)
    first = rng.normal(0, 1, 400)
    second = first + rng.normal(0.01, 0.1, 400)
    sides = [
        stats.ttest_1samp(first - second, -0.03, alternative="greater"),
        stats.ttest_1samp(first - second, 0.03, alternative="less"),
    ]
    p = max(side.pvalue for side in sides)
    sample = sample_of({"a": first[None], "b": second[None]}, fixed=("a", "b"))
    asked = Question(scores={"a": first[None], "b": second[None]}, fixed=frozenset("ab"), smallest=0.03)
    table = Table(question=asked, sample=sample, errors=errors_of(sample, seed_noise([sample])[0]))
    assert table.p_equivalent(0, 1) == pytest.approx(p)
    assert judge([asked])[0].word is Word.EQUIVALENT


def test_equal_numbers_of_runs_give_tukeys_test() -> None:
    families = [[0.50, 0.53, 0.55], [0.56, 0.61, 0.60], [0.66, 0.62, 0.68]]
    found = runs_only(*families)
    pool = float(np.mean([np.var(own, ddof=1) for own in families]))
    noise = SeedNoise(variances=np.full(3, pool), degrees=np.full(3, 6.0), total=6.0)
    found = replace(found, errors=errors_of(found.sample, noise))
    tukey = stats.tukey_hsd(*families)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert found.p_range(i, j, 3, limit=1.0) == pytest.approx(tukey.pvalue[i, j], abs=1e-6)


def test_a_share_has_wilsons_interval() -> None:
    sample = sample_of({"a": np.array([[1.0] * 30 + [0.0] * 10])}, fixed=("a",))
    errors = errors_of(sample, seed_noise([sample])[0])
    # an error as large as that of 40 items, and so many degrees of freedom that t is normal
    errors = replace(errors, levels=np.array([0.75 * 0.25 / 40]), level_degrees=np.array([1e9]))
    found = Table(question=question({}), sample=sample, errors=errors).level(0)
    wilson = stats.binomtest(30, 40).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high))


def test_the_errors_of_a_small_table_by_hand() -> None:
    # a: runs (1, 1, 0, 0) and (1, 0, 0, 0), means 1/2 and 1/4, variance over seeds 1/32;
    # b: runs (0, 1, 1, 1) and (0, 1, 1, 1), no variance. Item means a: 1, .5, 0, 0; b: 0, 1, 1, 1.
    sample = sample_of({"a": np.array([[1, 1, 0, 0], [1, 0, 0, 0]]), "b": np.array([[0, 1, 1, 1.0]] * 2)})
    assert sample.means == pytest.approx([3 / 8, 3 / 4])
    assert sample.variances == pytest.approx([1 / 32, 0])
    # rest of a: the two runs differ by 0, 1, 0, 0, mean 1/4; half the squared deviations over 3: (3/16 + 9/16) / 2 / 3
    assert sample.rest == pytest.approx([1 / 8, 0])
    noise = SeedNoise(variances=np.array([1 / 16, 1 / 16]), degrees=np.array([2.0, 2.0]), total=2.0)
    # Differences by item: 1, -1/2, -1, -1; mean -3/8, squares 3.25 - 4 * 9/64 = 2.6875, / 3 = 0.895833.
    item = (0.8958333 * 3 + 2 / 4) / 5 / 4  # two pseudo-items
    # seed: (1/16 - 1/32) / 2 for a; 1/16 / 2 for b
    assert errors_of(sample, noise).pairs[0, 1] == pytest.approx(1 / 64 + 1 / 32 + item, rel=1e-6)


def test_a_clear_winner_is_used_and_the_rest_is_worse() -> None:
    scores = drawn(3, items=400, lead=0.3) | {"base": drawn(4, 1, 1, 400)["f0"]}
    [found] = judge([question(scores, base="base")])
    assert (found.use, found.word) == ("f0", Word.BETTER)
    assert {contrast.word for contrast in found.against.values()} == {Word.WORSE}
    assert found.over_base["f0"].word is Word.BETTER
    assert found.equals == ("f0",)
    assert found.gain.low > 0


def test_the_leader_of_equals_is_not_used() -> None:
    [found] = judge([question(drawn(5))])
    assert found.use is None
    assert found.word is Word.NOISE
    assert set(found.equals) == {"f0", "f1", "f2"}


def test_the_base_wins_a_tie() -> None:
    same = drawn(6, 1, 1)["f0"]
    [found] = judge([question({"base": same, "a": np.repeat(same, 2, axis=0)}, base="base")])
    assert found.leader == "base"
    assert found.word is Word.UNTESTABLE
    assert found.gain is None


def test_many_tasks_see_together_what_one_cannot() -> None:
    tasks = [question(drawn(seed, 2, 3, 100, lead=0.07)) for seed in range(20, 25)]
    assert all(found.use is None for found in judge(tasks))
    joint = across(tasks)
    assert (joint.leader, joint.word, joint.tasks) == ("f0", Word.BETTER, 5)
    assert joint.lead.low > 0


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({}, "nothing to compare"),
        ({"a": np.ones((2, 5))}, "nothing to compare"),
        ({"a": np.ones((1, 5)), "b": np.zeros((1, 5))}, ONE_SEED),
        ({"a": np.ones((3, 1)), "b": np.zeros((3, 1))}, ONE_ITEM),
        ({"a": np.ones((3, 5)), "b": np.ones((3, 5))}, "same answer to every item"),
        ({"a": np.ones((3, 5)), "b": np.ones((3, 6))}, "different items"),
        ({"a": np.full((3, 5), np.nan), "b": np.ones((3, 5))}, "missing or not finite"),
        ({"a": np.full((3, 5), 0.5), "b": np.full((3, 5), 0.7)}, "neither runs nor items vary"),
    ],
)
def test_what_cannot_be_tested_says_why(scores: dict[str, np.ndarray], reason: str) -> None:
    [found] = judge([question(scores)])
    assert found.word is Word.UNTESTABLE
    assert reason in found.reason
    assert found.use is None


def test_a_task_that_cannot_be_asked_takes_nothing_from_the_others() -> None:
    asked = question(drawn(7, lead=0.2))
    alone, beside = judge([asked])[0], judge([question({"a": np.ones((1, 5)), "b": np.ones((1, 5))}), asked])[1]
    assert alone == beside


def test_intervals_hold_possible_values_only() -> None:
    scores = {"a": np.ones((2, 10)), "b": np.zeros((2, 10)), "base": np.zeros((1, 10))}
    scores["a"][0, 0], scores["b"][1, 3] = 0.0, 1.0
    [found] = judge([question(scores, base="base")])
    for level in found.levels.values():
        assert 0 <= level.low <= level.mean <= level.high <= 1
    for difference in [*found.gains.values(), *(contrast.difference for contrast in found.against.values())]:
        assert -1 <= difference.low <= difference.mean <= difference.high <= 1


def outline(found: Verdict) -> dict[str, object]:
    return {
        "p": found.p and round(found.p, 9),
        "word": found.word,
        "against": {name: (c.word, round(c.difference.mean, 9)) for name, c in found.against.items()},
        "gain": found.gain and round(found.gain.low, 9),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), families=st.integers(2, 4), lead=st.sampled_from([0.0, 0.2]))
def test_names_order_and_units_change_nothing(seed: int, families: int, lead: float) -> None:
    rng = np.random.default_rng(seed)
    scores = {name: own + rng.normal(0, 0.1, own.shape) for name, own in drawn(seed, families, lead=lead).items()}
    [first] = judge([Question(scores=scores, smallest=0.1)])
    shuffled = rng.permutation(60)
    other = {f"x{name}": 5 + 2 * scores[name][:, shuffled] for name in reversed(scores)}
    [second] = judge([Question(scores=other, smallest=0.2)])
    assert second.leader == f"x{first.leader}"
    expected = outline(first)
    halved = {name[1:]: (c.word, round(c.difference.mean / 2, 9)) for name, c in second.against.items()}
    assert outline(second) | {"against": halved} == expected


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_copy_of_the_leader_is_worse_than_it(seed: int) -> None:
    scores = drawn(seed, 3, lead=0.3)
    [before] = judge([question(scores)])
    [after] = judge([question(scores | {"copy": scores[before.leader]})])
    assert after.use is None
    assert {before.leader, "copy"} <= set(after.equals)


def test_students_t_is_scipys() -> None:
    for degrees in (1.0, 2.7, 30.0, 1318.0):
        assert comparison.tail(2.1, degrees) == pytest.approx(stats.t.sf(2.1, degrees))
        assert comparison.quantile(0.001, degrees) == pytest.approx(stats.t.isf(0.001, degrees))
