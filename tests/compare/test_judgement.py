"""The verdict on finished models, on made-up answers whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.analysis.retained import Status
from harness.compare.judgement import ANSWERS, compare
from harness.errors import SpecError
from harness.records.scale import Scale
from tests.compare.made_up import BITS, model, right, skill


def statuses(found):
    return {one.pair.name: one.status for one in found.models[0].skills}


def test_an_accuracy_at_chance_hides_no_loss_that_rose():
    """The published case: arc .25 before and after, and 1.82, then 2.19 bits per byte; nobody declared what chance is."""
    bits = np.random.default_rng(0).normal(1.82, 0.5, 400)
    bits += 1.82 - bits.mean()
    rise = np.random.default_rng(1).normal(0.37, 0.4, 400)
    rise += 0.37 - rise.mean()
    base, tuned = skill(right(100, 400), bits), skill(right(100, 400), bits + rise)
    found = compare(model("base", arc=base), [model("tuned", arc=tuned)], 0.05)
    (arc,) = found.models[0].skills
    assert (arc.status, arc.judged.measure.name, found.exit_code) == (Status.LOST, ANSWERS, 6)
    assert arc.judged.measure.share(arc.judged.measure.loss) == pytest.approx(
        1 - 2**-0.37
    )  # of each byte's probability


def test_an_accuracy_at_chance_alone_is_never_kept():
    at_chance = skill(right(100, 400))
    found = compare(model("base", arc=at_chance), [model("tuned", arc=at_chance)], 0.05)
    assert (statuses(found), found.exit_code) == ({"arc": Status.NO_HEADROOM}, 7)


def test_one_skill_is_lost_beside_others_that_were_never_there():
    """The published case: facts .715, then .245, where other suites stand at 0 before and after."""
    nothing = skill(right(0, 200), choices=0)
    base = model("base", facts=skill(right(143, 200), choices=0), code=nothing, maths=nothing)
    tuned = model("tuned", facts=skill(right(49, 200), choices=0), code=nothing, maths=nothing)
    found = compare(base, [tuned], 0.05)
    assert statuses(found) == {"facts": Status.LOST, "code": Status.NO_HEADROOM, "maths": Status.NO_HEADROOM}
    assert found.exit_code == 6
    (lost,) = found.models[0].having(Status.LOST)
    assert lost.judged.measure.loss == pytest.approx(0.47)
    assert (lost.flips.lost, lost.flips.gained) == (94, 0)


def test_a_model_against_itself_is_kept_where_there_are_items_enough():
    many, few = skill(right(150, 200)), skill(right(4, 5))
    assert compare(model("base", one=many), [model("base", one=many)], 0.05).exit_code == 0
    found = compare(model("base", one=many, two=few), [model("base", one=many, two=few)], 0.05)
    assert (found.models[0].status, found.exit_code) == (Status.CANNOT_TELL, 7)
    # two pseudo-items that differ: (2/6)/5 = .0667 is the squared error of 5 items; it must fall to (.05/2.8)^2 = .000319
    needed = math.ceil((2 / 6 / 5) * 5 / (0.05 / 2.8) ** 2)
    assert found.models[0].items_needed == needed


def test_of_several_models_the_worst_decides():
    base, good, bad = (
        model(name, one=skill(right(count, 400))) for name, count in (("b", 300), ("g", 300), ("w", 200))
    )
    assert compare(base, [good], 0.05).exit_code == 0
    found = compare(base, [good, bad], 0.05)
    assert [one.status for one in found.models] == [Status.KEPT, Status.LOST]
    assert found.exit_code == 6


def test_bits_per_byte_are_judged_as_they_are():
    bits = np.random.default_rng(0).normal(1.0, 0.2, 300)
    base, tuned = skill(bits, **BITS), skill(bits + np.random.default_rng(1).normal(0.5, 0.1, 300), **BITS)
    assert statuses(compare(model("b", text=base), [model("t", text=tuned)], 0.05)) == {"text": Status.LOST}
    assert statuses(compare(model("t", text=tuned), [model("b", text=base)], 0.05)) == {"text": Status.KEPT}


def test_a_metric_over_all_items_at_once_cannot_be_judged():
    whole = replace(skill(right(150, 200), choices=0), value=0.6)
    found = compare(model("b", f1=whole), [model("t", f1=whole)], 0.05)
    assert statuses(found) == {"f1": Status.CANNOT_TELL}
    assert "over all items" in found.models[0].skills[0].judged.reason


def test_a_metric_without_bounds_is_a_share_only_where_items_are_right_or_wrong():
    strict = skill(right(150, 200), choices=0, scale=Scale())
    assert compare(model("b", one=strict), [model("t", one=strict)], 0.05).exit_code == 0
    loose = skill(np.linspace(0, 3, 200), choices=0, scale=Scale())
    assert statuses(compare(model("b", one=loose), [model("t", one=loose)], 0.05)) == {"one": Status.CANNOT_TELL}


def test_only_shared_items_count_and_the_others_are_said():
    base = skill([*right(150, 200), *[0.0] * 100])
    tuned = skill(right(150, 200))
    found = compare(model("b", one=base), [model("t", one=tuned)], 0.05)
    assert found.exit_code == 0
    assert found.models[0].skills[0].pair.sides[0].value == pytest.approx(0.75)
    assert found.notes == ("one: 100 of 300 items that only b has were left out",)


def test_tasks_that_only_one_has_are_said():
    one = skill(right(150, 200))
    found = compare(model("b", one=one, two=one), [model("t", one=one, three=one)], 0.05)
    assert [note.rpartition(" ")[2] for note in found.notes] == ["two", "three"]


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        ({"other": skill([1, 0])}, "the same tasks, but b was on one and t on other"),
        ({"one": skill([1, 0], metric="acc_norm")}, "by one metric, but b was by acc and t by acc_norm"),
        (
            {"one": replace(skill([1, 0]), answers=tuple(replace(a, item="x") for a in skill([1]).answers))},
            "share none of one",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tuned, said):
    with pytest.raises(SpecError, match=said):
        compare(model("b", one=skill([1, 0])), [model("t", **tuned)], 0.05)


def test_the_worst_items_come_first():
    bits = np.array([1.0, 1.0, 1.0, 1.0])
    base, tuned = skill([1, 1, 0, 0], bits), skill([0, 1, 1, 0], bits + np.array([0.1, 0.4, 0, -1]))
    (found,) = compare(model("b", one=base), [model("t", one=tuned)], 0.05).models[0].skills
    assert [own.item for own, _ in found.worst(5)] == ["item 0", "item 1"]


@pytest.mark.parametrize("count", [2, 30])
def test_few_items_that_do_not_move_say_nothing_of_others(count):
    """That none of 30 items lost anything is likely (.54) where one in 50 loses all."""
    text = skill(np.linspace(1, 2, count), **BITS)
    assert statuses(compare(model("b", text=text), [model("t", text=text)], 0.05)) == {"text": Status.TOO_FEW}
