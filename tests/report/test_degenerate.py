"""Inputs that tests of statistics leave out: each gives a page that says what can be said, and no number that is none."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np
import pytest

from harness.database.ingest import ingest
from harness.database.items import Outcomes
from harness.report.conclusion import said
from harness.report.data import StudyData, load_study_data
from harness.report.page import render_report
from harness.report.rows import MemberRow
from tests.fabricate import fabricate, study_spec
from tests.report.studies import paths_in, with_answers

Row = TypeVar("Row", bound=MemberRow)
BROKEN = re.compile(r"\b(nan|NaN|inf|None|Traceback)\b|\{|−−|−0\.0 |−0 ")
"""What stands on a page only where somebody forgot a case."""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyData:
    """One task, two confirmed families, three seeds."""
    paths = paths_in(tmp_path_factory.mktemp("plain"))
    fabricate(paths, study_spec(tasks=1, trials=2, seeds=3), items=40)
    ingest(paths)
    return load_study_data(paths, "made_up")


def answered(study: StudyData, share: Callable[[int], float], runs: int = 3, items: int = 40) -> StudyData:
    """All families, and the base as number 0, answer these shares of the items right; the same ones in every run."""
    families = sorted({row.family for row in study.scores if row.role == "confirm"})

    def row(number: int) -> Any:
        return (np.arange(items) < round(share(number) * items)).astype(float)

    rows = {family: np.array([row(number)] * runs) for number, family in enumerate(families, 1)}
    return with_answers(study, rows, row(0))


def each(rows: Iterable[Row], wanted: Callable[[Row], bool] = lambda row: True, **changes: Any) -> list[Row]:
    return [replace(row, **changes) if wanted(row) else row for row in rows]


def searched_only(study: StudyData) -> StudyData:
    def kept(rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if row.role != "confirm"]

    return replace(study, trials=kept(study.trials), scores=kept(study.scores), outcomes=Outcomes())


def failed(study: StudyData) -> StudyData:
    tuned = each(study.trials, lambda row: row.role != "base", status="diverged", reason="the loss was <not> finite")
    return replace(study, trials=tuned, scores=[row for row in study.scores if row.role == "base"], outcomes=Outcomes())


def without_base(study: StudyData) -> StudyData:
    scores = each((row for row in study.scores if row.role != "base"), base_value=None, base_answer_bits=None)
    outcomes = {place: replace(one, base=None) for place, one in study.outcomes.scores.items()}
    trials = [row for row in study.trials if row.role != "base"]
    return replace(study, trials=trials, scores=scores, outcomes=Outcomes(outcomes))


def of_two_keys(study: StudyData) -> StudyData:
    return replace(study, scores=each(study.scores, lambda row: row.repetition == 2, comparability="another"))


def one_trial(study: StudyData) -> StudyData:
    only = next(row for row in study.trials if row.role == "search")
    scores = [row for row in study.scores if row.key == only.key]
    curves = [row for row in study.curves if row.key == only.key]
    return replace(study, trials=[only], scores=scores, curves=curves, outcomes=Outcomes())


def of_an_older_version(study: StudyData) -> StudyData:
    """What the first records lack."""
    nothing = dict.fromkeys(("cpu_s", "gpu_s", "peak_memory_bytes", "money", "solo_money", "energy_j", "utilisation"))
    lacking = nothing | dict.fromkeys(("versions_json", "plugins_json", "reach_json", "reach_experts_json", "notes"))
    scores = each(study.scores, low=None, high=None, chance=None, majority=None, answer_bits=None)
    return replace(study, trials=each(study.trials, **lacking), scores=scores, forecasts=None, habits={})


def clock_that_jumped(study: StudyData) -> StudyData:
    """Backwards by decades in the midst of the study; and seconds that are none."""
    late = each(study.trials, started_at=datetime(2090, 1, 1, tzinfo=UTC))
    early = each(
        late, lambda row: row.number == 1, started_at=datetime(1970, 1, 1, tzinfo=UTC), total_s=0.0, train_s=0.0,
        solo_train_s=0.0, cpu_s=0.0,
    )  # fmt: skip
    return replace(study, trials=early)


CASES: dict[str, tuple[Callable[[StudyData], StudyData], str]] = {
    "nothing confirmed": (searched_only, "No answer yet for task_0 on tiny-1m: no pipeline was confirmed"),
    "all failed": (failed, "the loss was <not> finite"),
    "one trial": (one_trial, "No answer yet for task_0 on tiny-1m"),
    "one seed": (lambda study: answered(study, lambda n: 0.5 + n / 10, runs=1), "nothing can be said yet"),
    "one item": (
        lambda study: answered(study, lambda n: float(n == 1), items=1),
        "one test item cannot say how others would be",
    ),
    "ties": (lambda study: answered(study, lambda n: 0.6), "have the same score on every single item"),
    "constant at its best": (lambda study: answered(study, lambda n: 1.0), "at the best value of the metric already"),
    "constant at its worst": (lambda study: answered(study, lambda n: 0.0), "have the same score on every single item"),
    "base missing": (without_base, "The base model has no score to compare with, so whether tuning pays is not known"),
    "keys mixed": (of_two_keys, "measured in ways that may not be compared"),
    "older records": (of_an_older_version, "For task_0 on tiny-1m"),
    "a clock that jumped": (clock_that_jumped, "For task_0 on tiny-1m, use"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_page_says_what_can_be_said(case: str, study: StudyData) -> None:
    change, expected = CASES[case]
    changed = change(study)
    page = render_report(changed)
    body = re.sub(r"<(style|pre)\b.*?</\1>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))
    page_one = text[: text.index("How the methods compare")]
    assert expected in page_one
    found = BROKEN.search(text)
    assert found is None, text[max(0, found.start() - 100) : found.end() + 50]
    assert "<not>" not in body
    assert ("has no score to compare with" in page_one) == (case == "base missing")
    assert all(BROKEN.search(one.text) is None for one in said(changed))
