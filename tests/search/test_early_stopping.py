"""When a family gives up: chances worked out by hand, and a study in which one family has no hope."""

import math

import pytest

from harness.records.lost_work import Stop, append_stop, lost_seconds, read_stops
from harness.records.paths import Paths
from harness.search.early_stopping import chance
from harness.study.load import study_json_schema
from harness.study.spec import Search
from tests.driver import standin


def survival(t):
    """P(T > t) with two degrees of freedom, which has a closed form."""
    return 0.5 - t / (2 * math.sqrt(2 + t**2))


def test_the_chance_is_that_of_a_prediction_limit_times_the_trials_left():
    # Mean .6, standard deviation .1; a score of .9 lies 3 / sqrt(4/3) = 2.598 prediction errors above the mean.
    each = survival(3 / math.sqrt(4 / 3))
    assert each == pytest.approx(0.0608, abs=1e-4)
    assert chance([0.5, 0.6, 0.7], 1, 0.9) == pytest.approx(each)
    assert chance([0.7, 0.5, 0.6], 4, 0.9) == pytest.approx(4 * each)
    assert chance([0.5, 0.6, 0.7], 100, 0.9) == 1.0


def test_losses_are_compared_with_their_sign_turned():
    assert chance([-0.5, -0.6, -0.7], 1, -0.3) == pytest.approx(survival(3 / math.sqrt(4 / 3)))


def test_equal_scores_are_as_uncertain_as_one_of_them():
    # Standard error .1: (.9 - .6) / (.1 sqrt(4/3)) as above. Without it nothing is known.
    assert chance([0.6, 0.6, 0.6], 1, 0.9, stderr=0.1) == pytest.approx(survival(3 / math.sqrt(4 / 3)))
    assert chance([0.6, 0.6, 0.6], 1, 0.9) == 1.0


@pytest.mark.parametrize("scores", [[], [0.1], [0.1, 0.2]])
def test_nothing_is_decided_on_fewer_than_three_scores(scores):
    assert chance(scores, 1, 0.99) == 1.0


def test_who_leads_does_not_give_up():
    assert chance([0.1, 0.1001, 0.9], 1, 0.9) == 1.0


def test_what_gave_up_can_be_read_again(tmp_path):
    paths = Paths(tmp_path)
    stop = Stop(
        family="full",
        task="sort",
        base_model="tiny",
        scored=5,
        left=11.0,
        seconds=90.0,
        best=0.4,
        leader=0.9,
        leader_family="lora",
        chance=0.01,
        limit=0.05,
        at="2026-11-22T10:00:00+00:00",
    )
    append_stop(paths.study("s"), stop)
    assert read_stops(paths, "s") == [stop]
    assert stop.reason == (
        "tiny/sort/full: gave up after 5 scored trials (best 0.400), since the chance that the other 11 reach 0.900 of "
        "lora is at most 0.01; that saved about 1.5 min"
    )
    assert read_stops(paths, "other") == []
    assert lost_seconds(paths, "other") == {}


def test_the_option_is_a_probability_described_in_the_schema():
    described = study_json_schema()["$defs"]["Search"]["properties"]["give_up"]
    assert "validation scores" in described["description"]
    for value in (0, 1, 1.5):
        with pytest.raises(ValueError, match="give_up"):
            Search(give_up=value)


def test_a_study_that_does_not_use_the_option_is_the_one_it_was():
    assert "give_up" not in standin.study().model_dump(mode="json")["search"]
    assert standin.study(search={"give_up": 0.05}).fingerprint != standin.study(search={}).fingerprint
