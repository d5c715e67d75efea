"""How much was forgotten, as a share: by hand, and by the database's expression."""

from __future__ import annotations

import math
from dataclasses import dataclass

import duckdb
import pytest

from harness.analysis.forgetting import Size, counted, mean_size, size_lost, size_sql, worst
from harness.records.scale import Scale

SHARE, POINTS, NONE = Scale(low=0.0, high=1.0), Scale(low=0.0, high=100.0), Scale()
CASES = [
    # metric, higher is better, scale, base, tuned, size, whether it is a share
    ("acc", True, SHARE, 0.715, 0.245, 0.47, True),  # 47 points
    ("acc", True, SHARE, 0.2, 0.3, -0.1, True),
    ("bleu", True, POINTS, 50.0, 40.0, 0.1, True),
    ("ter", False, Scale(low=0.0), 20.0, 50.0, 30.0, False),  # no end above: no share of anything
    ("mcc", True, Scale(low=-1.0, high=1.0), 0.5, 0.0, 0.25, True),
    ("perplexity", False, Scale(low=1.0), 5.0, 5000.0, 0.999, True),  # each token is a thousandth as probable
    ("perplexity", False, NONE, 5.0, 10.0, 0.5, True),
    ("perplexity", False, NONE, 10.0, 5.0, -0.5, True),
    ("bits_per_byte", False, Scale(low=0.0), 1.82, 2.82, 0.5, True),  # one bit is half the probability
    ("answer_bits_per_byte", False, NONE, 3.0, 1.0, -0.75, True),
    ("perplexity", True, NONE, 5.0, 4.0, 1.0, False),  # something else of that name
    ("perplexity", False, NONE, 0.0, 4.0, 4.0, False),  # none that can be
    ("elo", True, NONE, 1200.0, 1100.0, 100.0, False),
]


@pytest.mark.parametrize(("metric", "higher", "scale", "base", "tuned", "size", "is_share"), CASES)
def test_what_was_lost_as_a_share(metric, higher, scale, base, tuned, size, is_share):
    assert size_lost(base, tuned, metric, higher, scale) == Size(pytest.approx(size), is_share)


def test_the_published_case_of_bits_per_byte():
    # 1.82 to 2.19 bits: each byte has 2^-0.37 = 77.4% of its probability
    assert size_lost(1.82, 2.19, "bits_per_byte", False, NONE).value == pytest.approx(1 - 0.7738, abs=1e-4)


def test_the_database_has_the_same_definition():
    for metric, higher, scale, base, tuned, size, is_share in CASES:
        row = "SELECT ? AS metric, ? AS higher_is_better, ?::DOUBLE AS low, ?::DOUBLE AS high, ? AS base, ? AS tuned, ? AS lost"
        lost = (base - tuned) * (1 if higher else -1)
        (found,) = duckdb.execute(
            f"SELECT {size_sql('lost', 'base', 'tuned')} FROM ({row})",
            [metric, higher, scale.low, scale.high, base, tuned, lost],
        ).fetchone()
        assert (found["value"], found["is_share"]) == (pytest.approx(size), is_share), metric


@dataclass(frozen=True)
class Lost:
    metric: str
    size: Size


def test_the_worst_skill_is_of_those_that_have_one_unit():
    elo, bleu, perplexity = Lost("elo", Size(100.0, False)), Lost("bleu", Size(0.1, True)), Lost("p", Size(0.2, True))
    other = Lost("other", Size(500.0, False))
    assert worst([]) is None
    assert counted([elo, bleu, perplexity]) == [bleu, perplexity]
    assert worst([elo, bleu, perplexity]) is perplexity
    assert worst([elo, other]) is elo


def test_the_mean_over_runs():
    assert mean_size([Size(0.1, True), Size(0.3, True)]) == Size(pytest.approx(0.2), True)
    assert not mean_size([Size(0.1, True), Size(0.3, False)]).is_share
    assert math.isclose(mean_size([Size(-0.5, True)]).value, -0.5)
