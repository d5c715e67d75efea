"""Every sampler: valid points, no point twice, the same answer to the same history."""

import warnings

import pytest

from harness.plugins import load, names
from harness.search.memory import Observation, Tried
from harness.search.proposals import Asker, size
from harness.space import Choice, Float, Integer

SPACE = {
    "learning_rate": Float(1e-5, 1e-1, default=1e-3, log=True),
    "rank": Integer(2, 64, default=8, log=True),
    "target": Choice(("all", "attention"), default="all"),
}
SMALL = {"rank": Integer(1, 3, default=1), "bias": Choice((True, False), default=False), "fixed": Float(2.0, 2.0, 2.0)}


@pytest.fixture(params=names("search/samplers"))
def sampler(request):
    return load("search/samplers", request.param)()


def explore(space, sampler, count, running=False):
    """Ask `count` times; the score of a point is minus the distance of its rank from 3."""
    history = Tried()
    for number in range(count):
        point = Asker(space, sampler).ask(history, (0, "cell", number))
        if point is None:
            break
        late = running and number >= count - 2
        history.append(Observation(point, None if late else -abs(point["rank"] - 3.0), running=late))
    return [observation.params for observation in history]


def test_points_lie_in_the_space_with_the_types_that_it_declares(sampler):
    for point in explore(SPACE, sampler, 8):
        assert set(point) == set(SPACE)
        assert all(SPACE[name].contains(value) for name, value in point.items())


def test_a_discrete_space_is_tried_in_full_and_each_point_once(sampler):
    assert size(SMALL) == 3 * 2 * 1
    points = explore(SMALL, sampler, 20)
    assert len(points) == 6
    assert len({tuple(sorted(point.items())) for point in points}) == 6


def test_the_same_history_gets_the_same_answer(sampler):
    assert explore(SPACE, sampler, 7, running=True) == explore(SPACE, sampler, 7, running=True)


def test_who_kept_its_study_of_a_history_answers_as_who_makes_it_anew(sampler):
    """Results come late and out of order, one fails, and one score is corrected, as where a sampler sees another rung."""
    kept, history = Asker(SMALL | SPACE, sampler), Tried()
    for number in range(8):
        names = (0, "cell", number)
        point = kept.ask(history, names)
        assert point == Asker(SMALL | SPACE, sampler).ask(Tried(history), names)
        history.append(Observation(point, None, running=True))
        if number >= 3:
            late = number - 3 + 2 * (number % 2)
            history.replace(late, Observation(history[late].params, None if late == 1 else float(late * 7 % 5)))
        if number == 6:
            history.replace(0, Observation(history[0].params, 9.0))


def test_an_empty_space_has_one_point():
    random = load("search/samplers", "random")()
    assert Asker({}, random).ask(Tried(), (0,)) == {}
    assert Asker({}, random).ask(Tried([Observation({}, 1.0)]), (0,)) is None


def test_failures_do_not_stop_a_sampler(sampler):
    history = Tried(Observation({"rank": rank, "learning_rate": 1e-3, "target": "all"}, None) for rank in range(2, 10))
    assert Asker(SPACE, sampler).ask(history, (0,)) is not None


def test_a_model_based_sampler_beats_random_on_a_smooth_function():
    """Twenty trials on a parabola in one log-scaled parameter: TPE and GP end nearer to the optimum, seed by seed."""
    space = {"x": Float(1e-6, 1.0, default=1.0, log=True)}

    def regret(name, seed):
        import math

        sampler, history = load("search/samplers", name)(), Tried()
        for number in range(16):
            point = Asker(space, sampler).ask(history, (seed, number))
            history.append(Observation(point, -((math.log10(point["x"]) + 3) ** 2)))
        return -max(observation.value for observation in history)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        regrets = {name: sum(regret(name, seed) for seed in range(4)) for name in ("random", "tpe", "gp")}
    assert regrets["gp"] < regrets["random"]
    assert regrets["tpe"] < regrets["random"]
