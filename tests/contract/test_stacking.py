"""Every method whose trials can train together gives each of them what it would have alone, whatever they differ in."""

import random
import string

import pytest

from harness.axes.contract import Situation
from harness.methods.base import Method
from harness.models.base_model import resolve_model
from harness.models.facts import model_facts
from harness.objectives.base import Objective
from harness.plugins import load, names
from harness.space import Choice, Float, Integer, Params, defaults
from harness.study.family import stage_space
from harness.tasks.training_rows import Row
from tests.patience import THOROUGH
from tests.tiny import attached, stage, train

TOGETHER = [
    name for name in names("methods") if load("methods", name).needs_training and not load("methods", name).alone
]
APART = [name for name in names("methods") if load("methods", name).needs_training and load("methods", name).alone]
MEMBERS = 3
STEPS = 20 if THOROUGH else 8


def rows():
    draw = random.Random(0)
    return [
        Row(prompt=f"{number} {'x' * draw.randint(0, 20)}:", completion=" " + "".join(draws(draw)))
        for number in range(40)
    ]


def draws(draw):
    return (draw.choice(string.ascii_letters) for _ in range(draw.randint(1, 12)))


def others(name, parameter, default):
    """What a parameter may be in each of the trials, its default first."""
    if name == "learning_rate":
        return [default, default / 2, 2 * default]
    if isinstance(parameter, Choice):
        return [*parameter.choices, *parameter.choices][:MEMBERS]
    if isinstance(parameter, Integer):
        return [default, max(parameter.low, default // 3), min(parameter.high, default + 1)]
    assert isinstance(parameter, Float)
    return [default, (default + parameter.low) / 2, (default + parameter.high / 8) / 1.125]


def differing(method):
    """Parameters of the trials: all that may differ does."""
    plugin = load("methods", method)
    params = [{} for _ in range(MEMBERS)]
    for name, parameter in plugin.space.items():
        if name not in plugin.same:
            for own, value in zip(params, others(name, parameter, parameter.default), strict=True):
                own[name] = value
    return params


@pytest.mark.parametrize("method", TOGETHER)
def test_together_is_alone(method, world):
    """Loss by loss in float32, at rates that keep training stable; outside CI over fewer steps on one architecture."""
    able = [folder for folder in (world.llama, world.gpt2) if not refusal(method, folder)]
    turn = TOGETHER.index(method) % len(able)
    for folder in able if THOROUGH else [able[turn]]:
        assert_together_is_alone(method, folder)


def refusal(method, folder):
    facts = model_facts(resolve_model(str(folder)))
    return load("methods", method)().skip(Situation(device="cpu", model=facts))


def assert_together_is_alone(method, folder):
    stages = [stage(method, batch_size=2, **own) for own in differing(method)]

    def learners():
        return [attached(folder, one, STEPS, rows(), seed=seed)[0] for seed, one in enumerate(stages)]

    alone = [train(one)[0] for one in learners()]
    together = train(*learners())
    for mine, theirs in zip(together, alone, strict=True):
        assert len(mine) == STEPS
        assert mine == pytest.approx(theirs, abs=3e-5)  # of losses of 5: rounding over 20 steps
    assert alone[0] != pytest.approx(alone[1], abs=1e-3)


@pytest.mark.parametrize("method", TOGETHER)
def test_what_a_base_is_loaded_with_is_the_same_for_all(method):
    """Trials share the first one's base, so whatever changes how it is loaded must not differ."""
    plugin = load("methods", method)
    space = stage_space({"method": method, "objective": "sft", "retention": "none", "curation": "as_is"})
    known = Params(defaults(space))
    for name in set(plugin.space) - set(plugin.same):
        for value in others(name, plugin.space[name], known[name]):
            options = [plugin().load_options(params, "cpu") for params in (known, Params(known, **{name: value}))]
            assert repr(options[0]) == repr(options[1]), name


@pytest.mark.parametrize("method", APART)
def test_a_method_that_cannot_says_why(method):
    assert load("methods", method).alone.endswith(tuple(string.ascii_lowercase))


@pytest.mark.parametrize("folder", ["methods", "objectives"])
def test_what_must_be_the_same_is_a_parameter(folder):
    for name in names(folder):
        plugin = load(folder, name)
        assert set(plugin.same) <= set(plugin.space), name


def test_those_who_write_a_plugin_are_safe_by_default():
    """A new method runs alone, and a new objective by a trainer of its own, until they say otherwise."""
    assert Method.alone
    assert not Objective.fuses
