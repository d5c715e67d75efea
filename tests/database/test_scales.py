"""The scale of a metric in the database: as recorded, or as records of before it can only have meant; and what adds up by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.database.ingest import connect, ingest
from harness.records.paths import Paths
from harness.report.data import load_study_data
from harness.report.findings import compare
from tests.fabricate import fabricate, study_spec
from tests.report.studies import change_records


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """Two tasks, scored by acc; off-target `facts` by acc and `stories_perplexity` by perplexity; no record has a scale."""
    made = Paths(tmp_path / "results", tmp_path / "reports")
    fabricate(made, study_spec(tasks=1, trials=2, seeds=2))
    ingest(made)
    return made


def rows(paths: Paths, sql: str) -> list[tuple[Any, ...]]:
    with connect(paths) as connection:
        return connection.execute(sql).fetchall()


SCALES = "SELECT DISTINCT task, metric, low, high FROM scores ORDER BY task"


def rescored(paths: Paths, task: str, **changes: Any) -> None:
    """Change the scores of a task; a function makes a value of a value."""

    def change(record: dict[str, Any]) -> None:
        for score in record["scores"]:
            if score["task"] == task:
                score |= {k: v(score["value"]) if callable(v) else v for k, v in changes.items()}

    change_records(paths, change)


def test_a_record_without_a_scale_means_lm_evals_metric_unless_a_value_says_otherwise(paths: Paths) -> None:
    assert rows(paths, SCALES)[0] == ("facts", "acc", 0.0, 1.0)
    rescored(paths, "facts", metric="f1", value=lambda value: 100 * value)
    assert rows(paths, SCALES)[0] == ("facts", "f1", None, None)
    (comparison,) = compare(load_study_data(paths, "made_up"))
    lost = next(lost for lost in comparison.best.lost if lost.skill == "facts")
    assert "%" not in str(lost.unit.level(85.1))


def test_a_recorded_scale_counts_also_for_comparable_records_without(paths: Paths) -> None:
    rescored(paths, "facts", metric="f1", value=lambda value: 100 * value)
    seen: list[str] = []

    def first_only(record: dict[str, Any]) -> None:
        for score in record["scores"]:
            if score["task"] == "facts" and not seen:
                seen.append(score["task"])
                score["scale"] = {"low": 0.0, "high": 100.0}

    change_records(paths, first_only)
    assert rows(paths, SCALES)[0] == ("facts", "f1", 0.0, 100.0)


def test_a_scale_that_is_recorded_as_unknown_stays_unknown(paths: Paths) -> None:
    rescored(paths, "facts", scale={"low": None, "high": None})
    assert rows(paths, SCALES)[0] == ("facts", "acc", None, None)


def test_what_was_lost_adds_up_as_shares_of_the_scale(paths: Paths) -> None:
    """An accuracy that falls by .2 lost more than one of a hundred points that falls by ten."""
    rescored(paths, "stories_perplexity", metric="bleu", higher_is_better=True, value=lambda _: 50.0)

    def tuned(record: dict[str, Any]) -> None:
        trained = record["config"]["steps"] > 0
        for score in record["scores"]:
            if score["task"] == "facts":
                score["value"] = 0.6 if trained else 0.8
            elif score["task"] == "stories_perplexity":
                score["value"] = 40.0 if trained else 50.0

    change_records(paths, tuned)
    found = rows(paths, "SELECT DISTINCT round(worst, 6), round(mean, 6), worst_task, is_share FROM worst_forgetting")
    assert found == [(0.2, 0.15, "facts", True)]
    (comparison,) = compare(load_study_data(paths, "made_up"))
    worst = comparison.best.worst
    assert worst is not None
    assert (worst.skill, round(worst.size.value, 6)) == ("facts", 0.2)


def test_without_scales_only_one_metric_counts(paths: Paths) -> None:
    """Ten nats and two points of something do not add up."""
    rescored(paths, "facts", metric="elo", scale={"low": None, "high": None})
    rescored(paths, "stories_perplexity", metric="nats", scale={"low": None, "high": None})
    found = rows(paths, "SELECT DISTINCT worst_task, is_share FROM worst_forgetting")
    assert found == [("facts", False)]
