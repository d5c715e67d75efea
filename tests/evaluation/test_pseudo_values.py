"""What items bring to metrics of all items at once, by hand and against the variance that theory gives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from harness.analysis.comparison import Question
from harness.analysis.verdict import Word, judge
from harness.evaluation.pseudo_values import BLOCKS, pseudo_values


def ratio(parts: Sequence[object]) -> float:
    """Nats per token of a corpus, each text with its own number of tokens."""
    table = np.array(parts, dtype=float)
    return float(table[:, 0].sum() / table[:, 1].sum())


def f1(parts: Sequence[object]) -> float:
    """Of parts 2 * gold + given."""
    _, false, missed, right = np.bincount(parts, minlength=4)  # type: ignore[arg-type]
    return float(2 * right / max(2 * right + false + missed, 1))


def test_of_a_mean_each_item_brings_its_own_value() -> None:
    assert pseudo_values(np.mean, [0.0, 1.0, 5.0], 2.0) == pytest.approx([0.0, 1.0, 5.0])


def test_a_small_ratio_by_hand() -> None:
    """Of (1, 1), (2, 1), (6, 2) the score is 9/4; without each it is 8/3, 7/3 and 3/2.

    Each stands for 3 times the score less 2 times the rest's: 17/12, 25/12, 45/12; their mean 29/12 is moved to 9/4.
    """
    found = pseudo_values(ratio, [(1, 1), (2, 1), (6, 2)], 9 / 4)
    assert found == pytest.approx([15 / 12, 23 / 12, 43 / 12])


@pytest.mark.parametrize("count", [40, 2000])
def test_their_variance_is_that_of_the_score(count: int) -> None:
    """Of a ratio it is known: the mean of (nats - score * tokens)^2 over n and the squared mean of tokens (Cochran 1977, 6.4)."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 60, count)
    parts = list(zip(tokens * rng.gamma(20, 0.15, count), tokens, strict=True))
    score = ratio(parts)
    found = pseudo_values(ratio, parts, score)
    assert np.mean(found) == pytest.approx(score, rel=1e-12)
    rest = np.array([nats - score * own for nats, own in parts])
    error = math.sqrt((rest**2).mean() / count) / tokens.mean()
    # fifty blocks know a standard deviation to a tenth
    assert np.std(found, ddof=1) / math.sqrt(count) == pytest.approx(error, rel=0.1 if count <= BLOCKS else 0.3)


@pytest.mark.parametrize("parts", [[1.0], [(0, 0), (1, 1)], []])
def test_a_metric_that_needs_all_items_says_nothing_of_single_ones(parts: list[object]) -> None:
    def both(own: Sequence[object]) -> float:
        if len(set(own)) < 2:
            raise ValueError("one class has no area")
        return 0.5

    assert pseudo_values(both, parts, 0.5) is None
    assert pseudo_values(lambda own: math.nan, [1.0, 2.0], 0.5) is None


def test_families_that_are_alike_in_f1_are_rarely_told_apart_and_a_better_one_is() -> None:
    """60 studies of three families and a base; 5% of them may claim something, with three standard errors."""
    rng, claimed, found = np.random.default_rng(1), 0, 0
    for study in range(75):
        gold, hard = rng.random(100) < 0.3, rng.beta(1.5, 0.5, 100)

        def values(better: float, spread: float, gold: np.ndarray = gold, hard: np.ndarray = hard) -> list[float]:
            right = rng.random(100) < np.clip(hard + better + rng.normal(0, spread), 0, 1)
            parts = [int(part) for part in 2 * gold + np.where(right, gold, ~gold)]
            own = pseudo_values(f1, parts, f1(parts))
            assert own is not None
            return own

        lead = 0.3 if study >= 60 else 0.0
        scores = {name: np.array([values(lead if name == "0" else 0.0, 0.02) for _ in range(3)]) for name in "012"}
        [verdict] = judge([Question(scores=scores | {"base": np.array([values(0.0, 0.0)])}, base="base")])
        words = {one.word for one in (*verdict.against.values(), *verdict.over_base.values())}
        if lead:
            found += verdict.leader == "0" and Word.WORSE in words
        else:
            claimed += bool(words & {Word.WORSE, Word.BETTER})
    assert claimed / 60 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 60)
    assert found >= 11
