from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.analysis.comparison import Question
from harness.analysis.forgetting import Size
from harness.analysis.verdict import ONE_SEED, Word, judge
from harness.database.items import MISSING, Outcomes
from harness.plugins import load
from harness.records.paths import Paths
from harness.records.scale import Scale
from harness.report.conclusion import said
from harness.report.data import StudyData, load_study_data
from harness.report.findings import BASE, Advice, Comparison, compare, overall
from tests.report.studies import change_records, keep_members, with_answers, write_small


def confirmed_families(paths: Paths, task: str) -> list[str]:
    found = compare(load_study_data(paths, "made_up"))
    return [contender.family for comparison in found if comparison.task == task for contender in comparison.contenders]


def comparison(study: StudyData, task: str) -> Comparison:
    return next(found for found in compare(study) if found.task == task)


def answered(*right: int, items: int = 80) -> np.ndarray:
    """Runs that answer so many of the items, always the easiest, and one hard item each."""
    answers = np.array([[float(item < count) for item in range(items)] for count in right])
    for run in range(len(right)):
        answers[run, -1 - run] = 1.0
    return answers


@pytest.fixture(scope="module")
def study(small: Paths) -> StudyData:
    return load_study_data(small, "made_up")


@pytest.fixture(scope="module")
def families(study: StudyData) -> list[str]:
    """The two finalists of task_0."""
    return sorted({c.family for found in compare(study) if found.task == "task_0" for c in found.contenders})


def judged(study: StudyData, first: np.ndarray, second: np.ndarray, base: np.ndarray | None) -> StudyData:
    names = sorted({row.family for row in study.scores if row.role == "confirm" and row.task == "task_0"})
    return with_answers(study, dict(zip(names, (first, second), strict=True)), base)


BASE_ANSWERS = answered(20)[0]
GOOD, FAIR, POOR = (answered(*(n + i % 3 for i in range(5))) for n in (60, 40, 18))


def test_a_comparison_carries_the_verdict_on_its_items(study: StudyData, families: list[str]) -> None:
    [found] = compare(judged(study, FAIR, GOOD, BASE_ANSWERS))
    scores = {families[1]: GOOD, families[0]: FAIR, BASE: BASE_ANSWERS[None]}
    [expected] = judge([Question(scores=scores, base=BASE, scale=Scale(low=0, high=1), smallest=0.02)])
    assert found.verdict == expected
    assert (found.verdict.use, found.items) == (families[1], 80)
    best, second = found.contenders
    assert (best.family, second.family) == (families[1], families[0])
    assert best.level == expected.levels[best.label]
    assert best.gain == expected.gain
    assert (best.contrast, second.contrast) == (None, expected.against[second.label])
    assert second.over_base.word is Word.BETTER


def test_less_of_a_loss_is_better_and_levels_stay_as_they_are(study: StudyData, families: list[str]) -> None:
    losses = judged(study, FAIR, GOOD, BASE_ANSWERS)
    turned = replace(losses, scores=[replace(row, higher_is_better=False) for row in losses.scores])
    [found] = compare(turned)
    assert found.verdict.leader == BASE  # it has the least
    assert [contender.family for contender in found.contenders] == families
    level = found.best.level
    assert level.mean == pytest.approx(FAIR.mean())
    assert 0 <= level.low < level.mean < level.high <= 1
    assert found.best.gain.mean == pytest.approx(BASE_ANSWERS.mean() - FAIR.mean())


def test_what_a_loss_gains_on_a_skill_counts_as_lost(small: Paths) -> None:
    study = load_study_data(small, "made_up")
    # the fabricated perplexity rises from 5.0 by half of what accuracy on facts loses, plus noise
    for contender in (contender for found in compare(study) for contender in found.contenders):
        lost = {item.skill: item for item in contender.lost}
        assert set(lost) == {"facts", "stories_perplexity"}
        assert lost["stories_perplexity"].estimate.mean > 0
        assert contender.worst.skill == "facts"  # units do not mix: points come first


def test_scores_with_different_keys_are_never_ranked_together(tmp_path: Path) -> None:
    paths = write_small(tmp_path)
    families = confirmed_families(paths, "task_0")
    members = [json.loads(line) for line in paths.study("made_up").members.read_text().splitlines()]
    moved = {m["key"] for m in members if m["role"] == "confirm" and m["family"] == families[1]}
    keys = iter(path.parent.name for path in sorted(paths.trials.glob("*/*/record.json")))

    def change(record: dict[str, Any]) -> None:
        if next(keys) in moved:
            record["scores"][0]["comparability"] = "another tokenizer"

    change_records(paths, change)
    found = [c for c in compare(load_study_data(paths, "made_up")) if c.task == "task_0"]
    assert sorted(contender.family for c in found for contender in c.contenders) == sorted(families)
    assert [len(c.contenders) for c in found] == [1, 1]
    apart = next(c for c in found if c.comparability == "another tokenizer")
    assert apart.base is None  # the base was never scored that way: absent, not zero
    assert apart.best.gain is None


def test_without_base_scores_gain_and_forgetting_are_absent(tmp_path: Path) -> None:
    paths = write_small(tmp_path)
    members = [json.loads(line) for line in paths.study("made_up").members.read_text().splitlines()]
    for member in members:
        if member["role"] == "base":
            paths.record(member["key"]).unlink()
    keep_members(paths, "made_up", lambda member: member["role"] != "base")
    for found in compare(load_study_data(paths, "made_up")):
        assert found.base is None
        assert all((c.gain, c.lost, c.worst) == (None, (), None) for c in found.contenders)


def test_one_seed_has_no_interval_and_no_test(study: StudyData) -> None:
    [found] = compare(judged(study, FAIR[:1], GOOD[:1], BASE_ANSWERS))
    assert all((c.level.low, c.level.high, c.level.n) == (None, None, 1) for c in found.contenders)
    assert found.verdict.reason == ONE_SEED
    assert found.advice == (Advice.OPEN, None)


def test_without_item_outcomes_nothing_is_tested(study: StudyData) -> None:
    for found in compare(replace(study, outcomes=Outcomes())):
        assert MISSING in found.verdict.reason
        assert found.advice == (Advice.OPEN, None)
        assert all(c.level.low is None for c in found.contenders)


@pytest.mark.parametrize(
    ("first", "second", "base", "advice", "says"),
    [
        (FAIR, GOOD, BASE_ANSWERS, Advice.BEST, "and better than every other: from 5 seeds and 80 test items"),
        (GOOD[::-1], GOOD, BASE_ANSWERS, Advice.EQUAL, "Of those that beat the base, the one that forgets"),
        (POOR, POOR[::-1], BASE_ANSWERS, Advice.KEEP, "keep the base model as it is"),
        (FAIR, GOOD, answered(79)[0], Advice.KEEP, "keep the base model as it is"),
        (FAIR, GOOD, None, Advice.OPEN, "whether tuning pays is not known"),
        (np.ones((5, 80)), np.ones((5, 80)), np.ones(80), Advice.OPEN, "they gave the same answer to every item"),
    ],
)
def test_what_to_use_follows_from_the_verdict(
    study: StudyData, first: np.ndarray, second: np.ndarray, base: np.ndarray | None, advice: Advice, says: str
) -> None:
    changed = judged(study, first, second, base)
    [found] = compare(changed)
    assert found.advice[0] is advice
    text = str(load("report/sections", "answer")().render(changed))
    assert says in text
    assert (", use <em>" in text) == (found.advice[1] is not None)
    [line] = (one.text for one in said(changed))  # the terminal's last, which says the same
    assert says in line or (advice is Advice.OPEN and "nothing can be said yet" in line)
    assert (", use " in line) == (found.advice[1] is not None)
    assert load("report/sections", "method_comparison")().render(changed)


@pytest.mark.parametrize(
    ("lost", "seconds", "named"),
    [
        ((0.30, 0.10), (1.0, 9.0), 1),  # forgets least, whatever it costs
        ((0.10, 0.30), (9.0, 1.0), 0),
        ((0.20, 0.20), (9.0, 1.0), 1),  # equals in that: costs least
        ((0.20, None), (9.0, 1.0), 0),  # what nobody measured is not nothing
        ((None, None), (None, 1.0), 1),
    ],
)
def test_of_equals_the_one_is_named_that_forgets_least_and_then_costs_least(
    study: StudyData, lost: tuple[float | None, ...], seconds: tuple[float | None, ...], named: int
) -> None:
    [found] = compare(judged(study, GOOD[::-1], GOOD, BASE_ANSWERS))
    assert found.advice[0] is Advice.EQUAL
    contenders = [
        replace(
            contender,
            train_s=own_seconds,
            lost=() if size is None else (replace(contender.lost[0], size=Size(size, is_share=True)),),
        )
        for contender, size, own_seconds in zip(found.contenders, lost, seconds, strict=True)
    ]
    advice, chosen = replace(found, contenders=tuple(contenders)).advice
    assert (advice, chosen) == (Advice.EQUAL, contenders[named])


def test_the_question_over_all_tasks_stands_first(study: StudyData) -> None:
    [joint] = overall(study).values()
    assert joint.tasks == 2
    assert f"On average over 2 tasks on tiny-1m, {joint.leader} leads" in str(
        load("report/sections", "answer")().render(study)
    )


def test_the_question_over_all_tasks_names_whom_it_is_about(study: StudyData) -> None:
    """Of a family that one of the tasks lacks nothing is said, and that is said."""
    by_task = [{c.label for c in found.contenders} for found in compare(study)]
    shared, missing = set.intersection(*by_task), set.union(*by_task) - set.intersection(*by_task)
    assert shared
    assert missing
    [joint] = overall(study).values()
    assert {joint.leader, *joint.others} == {*shared, BASE}
    text = re.sub(r"<[^>]*>", "", str(load("report/sections", "answer")().render(study)))
    assert f"better than {joint.others[0]}" in text
    assert f"That says nothing of {', '.join(sorted(missing))}, not confirmed on all of these tasks." in text.replace(
        " and ", ", "
    )


def test_where_the_base_wins_the_row_and_the_card_are_about_it(study: StudyData) -> None:
    """A gain that was not shown must not stand as the answer's."""
    poor = judged(study, POOR, POOR[::-1], BASE_ANSWERS)
    [found] = compare(poor)
    assert found.advice[0] is Advice.KEEP
    text = str(load("report/sections", "answer")().render(poor))
    assert f"Gain of {found.best.label} over the base model" in text
    assert f"What {found.best.label} forgot" in text


def test_failed_confirm_runs_are_counted(tmp_path: Path) -> None:
    paths = write_small(tmp_path)
    family = confirmed_families(paths, "task_0")[0]
    members = [json.loads(line) for line in paths.study("made_up").members.read_text().splitlines()]
    failed = next(m["key"] for m in members if (m["role"], m["task"], m["family"]) == ("confirm", "task_0", family))
    keys = iter(path.parent.name for path in sorted(paths.trials.glob("*/*/record.json")))

    def change(record: dict[str, Any]) -> None:
        if next(keys) == failed:
            record.update(status="out_of_memory", scores=[], reason="no memory")

    change_records(paths, change)
    found = comparison(load_study_data(paths, "made_up"), "task_0")
    counted = {c.family: (c.level.n, c.failures) for c in found.contenders}
    assert counted[family] == (4, 1)
    assert all(value == (5, 0) for name, value in counted.items() if name != family)
