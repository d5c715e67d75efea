"""What surrogates learn from, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.recommend import lessons as module
from harness.recommend.candidates import why_impossible
from harness.recommend.features import Candidate, Encoder, Observation
from harness.recommend.lessons import completed, lessons
from harness.recommend.predictor import Outlook
from harness.recommend.surrogates._ranks import Ranks
from harness.records.scale import Scale
from harness.records.trial import Stage

ONE = Observation(
    key="k0",
    task="t",
    base_model="b",
    family="full",
    pipeline="p",
    role="",
    candidate=Candidate(
        stages=(Stage(method="full"),),
        steps=10,
        fidelity=1.0,
        model={},
        task={},
        base_score=None,
        scale=Scale(low=0, high=1),
    ),
    comparability="c",
    split="test",
    metric="acc",
    score=0.5,
    gain=None,
    forgetting=None,
    forgetting_is_share=None,
    seconds=None,
    memory_bytes=None,
)


def run(**changes: object) -> Observation:
    return replace(ONE, **changes)  # type: ignore[arg-type]


def test_a_pipeline_counts_once_with_the_means_of_what_is_known() -> None:
    runs = [
        run(key="a", score=0.2, seconds=1.0),
        run(key="b", score=0.4, seconds=None),
        run(key="c", score=0.9, pipeline="q"),
    ]
    first, second = lessons(runs)
    assert (first.key, first.score, first.seconds, first.gain) == ("a", pytest.approx(0.3), 1.0, None)
    assert second == runs[2]
    assert len(lessons([*runs, replace(runs[0], split="validation")])) == 3, "another split is not the same measurement"


def test_of_very_many_lessons_tasks_give_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 10)
    runs = [run(key=f"{i:03}", pipeline=str(i), task="large" if i >= 3 else "small") for i in range(60)]
    kept = [o.task for o in lessons(runs)]
    assert (kept.count("small"), kept.count("large")) == (3, 7), "what the small task leaves, the large one may have"


def test_runs_without_a_base_get_the_level_that_is_expected_of_them() -> None:
    """On a scale of 0 to 1 the middle of .2, .5, .8 is .5, from where .5 is to be gained: effects -.6, 0, .6; level .3."""
    runs = [run(key=str(i), pipeline=str(i), score=score) for i, score in enumerate((0.2, 0.5, 0.8))]
    anchor = run(key="x", task="other", pipeline="x", gain=0.9)
    gains = completed([*runs, anchor], lambda own: np.full(len(own), 0.3))
    assert gains.tolist() == pytest.approx([-0.3, 0.3, 0.9, 0.9])
    assert completed(runs, lambda own: np.full(len(own), 7.0)).tolist() == pytest.approx([-0.6, 0, 0.6]), (
        "nothing to anchor to"
    )


def test_a_loss_without_bounds_is_measured_against_the_best_known() -> None:
    """Lower is better: 1, 2 and 10^9 have the middle 2, the best is 1 better; a disaster counts three units, no more."""
    of = replace(ONE.candidate, higher_is_better=False, scale=Scale())
    runs = [run(key=str(i), pipeline=str(i), score=score, candidate=of) for i, score in enumerate((1.0, 2.0, 1e9))]
    assert completed(runs, lambda own: np.zeros(len(own))).tolist() == [1.0, 0.0, -3.0]
    assert np.isnan(completed(runs[:1], lambda own: np.zeros(1))).all(), "what is alone on its task teaches nothing"


@given(st.lists(st.floats(-1e30, 1e30, allow_nan=False), min_size=1, max_size=40))
def test_ranks_go_there_and_back_and_keep_the_order(values: list[float]) -> None:
    y = np.array(values)
    ranks = Ranks.of(y)
    scores = ranks.scored(y)
    assert ranks.back(scores) == pytest.approx(y, rel=1e-9, abs=1e-9 * np.abs(y).max())
    order = np.argsort(y, kind="stable")
    assert (np.diff(scores[order]) >= 0).all()
    assert ranks.back(np.array([-99.0, 99.0])).tolist() == [y.min(), y.max()]


def test_normal_scores_by_hand() -> None:
    """Of 1, 1, 5, 9 the mid-ranks are 1/4, 1/4, 5/8, 7/8; the normal quantiles of these are from a table."""
    assert Ranks.of(np.array([9.0, 1.0, 5.0, 1.0])).scores.tolist() == pytest.approx(
        [-0.6745, 0.3186, 1.1503], abs=1e-4
    )


def test_numbers_that_span_a_decade_are_compared_by_ratio_and_missing_ones_are_marked() -> None:
    seen: list[dict[str, float | str]] = [
        {"a": 1.0, "b": 1.0, "c": "x"},
        {"a": 10.0, "c": "y"},
        {"a": 100.0, "b": 2.0, "c": "x"},
    ]
    encoder = Encoder.fit(seen)
    assert encoder.columns == ("a", "b", "b=", "c=x", "c=y")
    assert encoder.transform(seen).tolist() == [[0, 1, 0, 1, 0], [1, 1.5, 1, 0, 1], [2, 2, 0, 1, 0]]
    assert encoder.transform([{"a": -1.0}]).tolist() == [[1, 1.5, 1, 0, 0]], "what has no logarithm is not known"


def of(method: str, task: str, score: float, **changes: object) -> Observation:
    """A run of a method; what it gains is its score where the task has a base of 0."""
    name = f"{method}/{task}/{score}/{changes.get('pipeline', '')}"
    candidate = replace(ONE.candidate, stages=(Stage(method=method),), base_score=0.0 if task != "baseless" else None)
    own: dict[str, object] = {"key": name, "pipeline": name, "gain": score if task != "baseless" else None}
    return run(task=task, comparability=task, candidate=candidate, score=score, **(own | changes))


def expected(seen: list[Observation], surrogate: str, **options: bool) -> dict[str, tuple[float, float, float]]:
    """Mean and interval of the gain that an outlook expects of each method on a new task."""
    asked = {o.candidate.stages[0].method: o.candidate for o in seen}
    found = Outlook(seen, surrogate, ["gain"], **options).predict(list(asked.values()))["gain"]
    return dict(
        zip(asked, zip(*(map(float, end) for end in (found.mean, found.low, found.high)), strict=True), strict=True)
    )


def test_what_ran_often_is_not_better_known_than_what_is_good() -> None:
    """Nine seeds of a pipeline that gains nothing and one of another that gains all: the mean of both is a half."""
    seeds = [of("full", "t", 0.0, key=f"k{i}", pipeline="p") for i in range(9)]
    assert expected([*seeds, of("lora", "t", 1.0)], "mean_of_all")["full"][0] == pytest.approx(0.5)


def test_runs_without_a_base_score_move_what_is_expected_of_their_methods() -> None:
    """Where bases are known both methods gain .5; elsewhere full is ahead by .6 on a scale with .5 to gain from the middle."""
    known = [of(method, task, 0.5) for method in ("full", "lora") for task in ("a", "b")]
    alone = expected(known, "mean_of_method")
    assert alone["full"][0] == alone["lora"][0] == pytest.approx(0.5)
    both = expected([*known, of("full", "baseless", 0.8), of("lora", "baseless", 0.2)], "mean_of_method")
    # effects of +.6 and -.6 around the level of .5 that is expected of both: means of .5, .5, 1.1 and of .5, .5, -.1
    assert both["full"][0] == pytest.approx((0.5 + 0.5 + 1.1) / 3)
    assert both["lora"][0] == pytest.approx((0.5 + 0.5 - 0.1) / 3)


def test_intervals_are_calibrated_on_tasks_that_were_left_out() -> None:
    """Tasks differ in level far more than runs within one do: the outermost task lies outside of what the others tell."""
    seen = [of("full", f"t{level}", level + step / 100) for level in range(6) for step in range(3)]
    _, low, high = expected(seen, "mean_of_all")["full"]
    _, own_low, own_high = expected(seen, "mean_of_all", calibrated=False)["full"]
    assert low < own_low < own_high < high


def test_what_something_else_ran_with_parameters_of_its_own_is_not_offered() -> None:
    assert why_impossible([Stage(method="lora", params={"learning_rate": 1e-3})], None) == ""
    assert "lora has no parameter config.r" in why_impossible([Stage(method="lora", params={"config.r": 8})], None)
