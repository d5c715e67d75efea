"""Every file of every axis, found by itself, keeps the contract of its folder's `base.py`."""

import itertools

import pytest

from harness.plugins import AXES, load, names
from harness.space import check, defaults
from harness.study.family import OPTIMIZER_SPACE

EVERY = [(folder, name) for folder in AXES for name in names(folder)]


@pytest.mark.parametrize(("folder", "name"), EVERY)
def test_it_says_what_it_is(folder, name):
    plugin = load(folder, name)
    assert plugin.summary
    assert len(plugin.summary) <= 100
    assert "\n" not in plugin.summary
    if folder == "methods" and plugin.needs_training:
        assert plugin.paper


@pytest.mark.parametrize(("folder", "name"), EVERY)
def test_its_defaults_lie_in_its_space(folder, name):
    space = load(folder, name).space
    check(space, defaults(space), f"{folder}/{name}")


@pytest.mark.parametrize(("folder", "name"), [(f, n) for f, n in EVERY if f == "methods"])
def test_a_method_brings_its_own_learning_rate(folder, name):
    plugin = load(folder, name)
    assert not plugin.needs_training or plugin.space["learning_rate"].searched


@pytest.mark.parametrize(("folder", "other"), itertools.combinations(AXES, 2))
def test_no_parameter_is_declared_on_two_axes(folder, other):
    """Choices of one axis may share names: a stage has one of them."""
    mine, theirs = ({key for name in names(f) for key in load(f, name).space} for f in (folder, other))
    assert mine & theirs <= set(OPTIMIZER_SPACE)


def test_lora_like_methods_search_ten_times_the_learning_rate_of_full_tuning():
    full, lora = (load("methods", name).space["learning_rate"] for name in ("full", "lora"))
    assert lora.default == pytest.approx(10 * full.default)
    assert (full.low, lora.low) == (1e-6, 1e-5)
