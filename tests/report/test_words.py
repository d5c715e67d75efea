from __future__ import annotations

import math

import pytest

from harness.metrics.base import SHARE
from harness.records.scale import Scale
from harness.report import words
from harness.report.words import Unit


def test_accuracies_are_percentages_with_one_decimal() -> None:
    for metric in ("acc", "prompt_level_strict_acc"):
        unit = Unit(metric, scale=SHARE)
        assert unit.level(0.8415) == "84.2 %"  # 84.15 rounds to even in binary: 0.8415 * 100 = 84.15000000000001
        assert unit.difference(-0.0312) == "−3.1 points"
        assert unit.span(0.01, 0.023) == "+1.0 to +2.3"


def test_losses_have_three_decimals_and_their_name() -> None:
    unit = Unit("bits_per_byte", higher_is_better=False)
    assert unit.level(1.23456) == "1.235 bits per byte"
    assert unit.difference(0.0004) == "0.000 bits per byte"  # what rounds to nothing carries no sign
    assert unit.lost(-0.5) == "0.500 bits per byte gained"


@pytest.mark.parametrize("scale", [Scale(), Scale(low=0.0), Scale(low=0.0, high=100.0), Scale(low=-1.0, high=1.0)])
def test_what_was_not_declared_a_share_is_no_percentage_whatever_its_name(scale: Scale) -> None:
    unit = Unit("f1", scale=scale)
    assert (unit.level(85.1), unit.difference(-2.0)) == ("85.100 f1", "−2.000 f1")


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_no_number_stays_no_number(value: float | None) -> None:
    unit = Unit("acc", scale=SHARE)
    for shown in (unit.level, unit.difference, unit.lost, words.seconds, words.size, words.number, words.p_value):
        assert shown(value) is None
    assert words.money(value, "USD") is None
    assert unit.span(value, 0.1) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (0.4234, "0.42 s"), (12.34, "12.3 s"), (90, "1.5 min"), (3600, "1.0 h"), (360_000, "100.0 h")],
)
def test_durations(value: float, text: str) -> None:
    assert words.seconds(value) == text


def test_other_numbers() -> None:
    assert words.size(540_000_000) == "540.0 MB"
    assert words.size(12) == "12 bytes"
    assert words.p_value(0.0004) == "< 0.001"
    assert words.p_value(0.0284) == "0.028"
    assert words.money(0.0012, "EUR") == "0.0012 EUR"
    assert words.money(1234.5, "EUR") == "1,234.50 EUR"
    assert words.number(1_000_000) == "1,000,000"
    assert words.number(0.00065473) == "0.000655"
    assert words.number(-2.0) == "−2"
    assert words.count(1, "trial") == "1 trial"
    assert words.count(2000, "trial") == "2,000 trials"
    assert words.listed([]) == "none"
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
