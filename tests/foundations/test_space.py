"""Spaces: ranges, samples inside them, and what a study may narrow."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import SpecError
from harness.space import Choice, Float, Integer, Named, Params, Text, check, defaults, listed, override, searched
from harness.study.family import OPTIMIZER_SPACE

SPACE = {
    "learning_rate": Float(1e-5, 1e-2, default=1e-3, log=True),
    "rank": Integer(1, 64, default=8, log=True),
    "target": Choice(("attention", "all"), default="all"),
    "seedless": Float(0.0, 1.0, default=0.5, searched=False),
}


@given(st.integers())
def test_every_sample_lies_in_its_distribution(seed):
    rng = random.Random(seed)
    assert all(distribution.contains(distribution.sample(rng)) for distribution in SPACE.values())


def test_log_sampling_is_uniform_in_the_logarithm():
    rng = random.Random(0)
    draws = [SPACE["learning_rate"].sample(rng) for _ in range(4000)]
    # 1e-5..1e-2 spans three decades: a third of the draws falls into each; 4 sd of a proportion 1/3 is 0.03.
    assert sum(draw < 1e-4 for draw in draws) / 4000 == pytest.approx(1 / 3, abs=0.03)


def test_defaults_and_searched_parts():
    assert defaults(SPACE) == {"learning_rate": 1e-3, "rank": 8, "target": "all", "seedless": 0.5}
    assert set(searched(SPACE)) == {"learning_rate", "rank", "target"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("rank", 0), ("rank", 65), ("rank", 8.0), ("rank", True), ("learning_rate", float("nan")), ("target", "mlp")],
)
def test_values_outside_are_refused_with_the_value_and_the_range(name, value):
    with pytest.raises(SpecError, match=f"here: {name} must lie in .* but got {value!r}"):
        check(SPACE, {name: value}, "here")


def test_unknown_parameter_names_the_closest():
    with pytest.raises(SpecError, match="did you mean 'learning_rate'"):
        override(SPACE, {"learning_rat": 1e-3}, "family lora")


def test_a_scalar_fixes_and_a_range_narrows():
    narrowed = override(SPACE, {"rank": 4, "learning_rate": {"low": 1e-4}, "seedless": {"low": 0, "high": 1}}, "x")
    assert narrowed["rank"] == Integer(1, 64, default=4, log=True, searched=False)
    assert narrowed["learning_rate"] == Float(1e-4, 1e-2, default=1e-3, log=True)
    assert narrowed["seedless"].searched


def test_choices_of_a_numeric_parameter_become_a_choice():
    assert override(SPACE, {"rank": {"choices": [2, 4]}}, "x")["rank"] == Choice((2, 4), default=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 1e-2, "high": 1e-3}, "low <= high"),
        ({"low": 1e-9}, "must lie in"),
        ({"lo": 1e-4}, "did you mean 'low'"),
        ({"choices": []}, "at least one value"),
        ({"choices": [None, 1e-3]}, "must lie in .* but got None"),
        ({"choices": [[1e-3]]}, "must lie in"),
        ({"low": None}, "must lie in .* but got None"),
        ({"high": 10**400}, "must lie in"),
        ({"log": "on"}, "log: true or false"),
        (None, "must lie in .* but got None"),
        ([1e-3], "must lie in"),
        (10**400, "must lie in"),
    ],
)
def test_impossible_ranges_are_refused(change, message):
    with pytest.raises(SpecError, match=message):
        override(SPACE, {"learning_rate": change}, "x")


def test_a_logarithm_needs_a_range_above_zero():
    with pytest.raises(SpecError, match="only above 0"):
        override(SPACE, {"seedless": {"low": 0, "log": True}}, "x")


@given(st.floats(1e-5, 1e-2), st.floats(1e-5, 1e-2))
def test_a_narrowed_range_lies_inside_and_keeps_its_default_inside(a, b):
    low, high = sorted((a, b))
    narrowed = override(SPACE, {"learning_rate": {"low": low, "high": high}}, "x")["learning_rate"]
    assert (narrowed.low, narrowed.high) == (low, high)
    assert narrowed.contains(narrowed.default)


def test_the_optimiser_defaults_lie_in_their_ranges():
    check(OPTIMIZER_SPACE, defaults(OPTIMIZER_SPACE), "optimiser")


def test_listed_names_have_tags_and_weights():
    assert listed("trec@3f..=0.5, my_task@9a, plain = 2,") == (
        Named("trec", "3f..", 0.5),
        Named("my_task", "9a", 1.0),
        Named("plain", "", 2.0),
    )
    assert listed(" , ") == ()
    assert [entry.pinned for entry in listed("trec@3f=2, plain")] == ["trec@3f", "plain"]


@pytest.mark.parametrize("text", ["a=0", "a=-1", "a=x", "=1", "@3f"])
def test_a_list_with_a_nameless_or_weightless_entry_is_no_value(text):
    assert not Text(names="tasks").contains(text)
    assert Text().contains(text)


def test_parameters_are_read_by_type():
    params = Params({"rank": 8, "alpha": 16, "gradual": True, "target": "all", "pools": "trec=2"})
    assert params.integer("rank") == 8
    assert isinstance(params.number("alpha"), float)
    assert params.flag("gradual")
    assert params.text("target") == "all"
    assert params.names("pools") == (Named("trec", "", 2.0),)
    assert params == {"rank": 8, "alpha": 16, "gradual": True, "target": "all", "pools": "trec=2"}


@pytest.mark.parametrize(
    ("reader", "name", "said"),
    [
        ("integer", "gradual", "gradual must be a whole number, but got True"),
        ("integer", "alpha", "alpha must be a whole number, but got 16.0"),
        ("number", "gradual", "gradual must be a number, but got True"),
        ("number", "target", "target must be a number, but got 'all'"),
        ("flag", "alpha", "alpha must be true or false, but got 16.0"),
        ("text", "alpha", "alpha must be text, but got 16.0"),
        ("names", "gradual", "gradual must be text, but got True"),
        ("number", "alhpa", "did you mean 'alpha'"),
    ],
)
def test_a_parameter_of_another_type_or_name_is_one_sentence(reader, name, said):
    params = Params({"alpha": 16.0, "gradual": True, "target": "all"})
    with pytest.raises(SpecError, match=said):
        getattr(params, reader)(name)


def test_a_default_stands_for_a_missing_parameter_only():
    params = Params({"share": 0.0, "pools": ""})
    assert params.number("share", 1.0) == 0.0
    assert params.names("pools", "trec") == ()
    assert params.number("other", 1.0) == 1.0
    assert params.names("other", "trec") == (Named("trec"),)


def test_changed_parameters_are_a_copy():
    values = {"rank": 8, "alpha": 16.0}
    params = Params(values)
    values["rank"] = 1
    assert Params(params, rank=4, bits=2) == {"rank": 4, "alpha": 16.0, "bits": 2}
    assert params == {"rank": 8, "alpha": 16.0}
