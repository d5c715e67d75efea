"""A study that tunes for a group and looks for forgetting in another: one row each, which opens into its parts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness.database.ingest import connect, ingest
from harness.driver.experiment import Site
from harness.driver.phases import run_phase
from harness.driver.plan import plan_study
from harness.driver.resolve import resolve
from harness.records.paths import Paths
from harness.records.results import iterate_results, read_result
from harness.records.trial import TrialResult
from harness.report.data import load_study_data
from harness.report.page import render_report
from harness.study.spec import StudySpec
from tests.evaluation.test_groups import SIZES, write
from tests.tiny import save_llama


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudySpec, Site]:
    """A whole study of two trials; `world` is tuned for, `stem` and the tag are off-target."""
    folder = tmp_path_factory.mktemp("groups")
    spec = StudySpec.model_validate(
        {
            "name": "groups",
            "question": "What is lost of a group?",
            "base_models": [str(save_llama(folder / "llama"))],
            "tasks": ["world"],
            "off_target": ["stem", "stem_tasks", "law"],
            "families": {"full": {"method": "full"}},
            "budget": {"trials": 1, "steps": 2},
            "confirm": {"finalists": 1, "seeds": 2},
        }
    )
    (folder / "tasks").mkdir()
    site = Site(
        paths=Paths(folder / "results", folder / "reports"),
        task_folders=(write(folder / "tasks"),),
        runner="inline",
        device="cpu",
        display=False,
    )
    for role in ("base", "search", "confirm"):
        assert run_phase(role, spec, site).exit_code == 0
    ingest(site.paths)
    return spec, site


def test_the_plan_counts_every_task_of_a_group(done: tuple[StudySpec, Site]) -> None:
    experiment = resolve(*done)
    (world,) = experiment.tasks
    assert (world.tasks, world.scored("test", None), world.scored("test", 4)) == (4, sum(SIZES.values()), 15)
    assert world.rows == 4 * 5  # of six rows of each, one is for validation
    assert [task.tasks for task in experiment.off_target] == [2, 2, 1]
    text = plan_study(experiment).text()
    assert "world: its acc is the mean over 4 of its 4 tasks, of which each counts as often as it has items" in text
    assert "stem_tasks: its acc is the plain mean of its 2 parts: lm-eval has no score for a tag" in text


def test_a_group_is_one_score_and_its_parts_stand_beside_it(done: tuple[StudySpec, Site]) -> None:
    _, site = done
    results = [result for _, result in iterate_results(site.paths) if isinstance(result, TrialResult)]
    assert len(results) == 5  # base twice, one search trial, two confirmed
    for result in results:
        assert [score.task for score in result.scores] == ["world", "stem", "stem_tasks", "law"]
        assert {part.whole for part in result.parts} == {"world", "stem", "stem_tasks"}
        assert len(result.parts) == 6 + 2 + 2
        assert read_result(site.paths.record(result.config.key)) == result


def test_the_database_has_the_parts_and_forgetting_counts_a_group_once(done: tuple[StudySpec, Site]) -> None:
    _, site = done
    with connect(site.paths) as connection:
        forgotten = connection.execute("SELECT task, count(*) FROM forgetting GROUP BY 1 ORDER BY 1").fetchall()
        parts = connection.execute(
            "SELECT parent, parts.task, is_group, counts, low, high FROM parts JOIN trials USING (key) "
            "WHERE whole = 'world' AND steps = 0 AND parts.split = 'test' ORDER BY position"
        ).fetchall()
        pairs = connection.execute("SELECT count(*) FROM parts p JOIN base_parts b USING (whole, parent, task, split)")
        assert pairs.fetchall() == [(10 * 5,)]
    assert forgotten == [("law", 3), ("stem", 3), ("stem_tasks", 3)]
    assert [row[:3] for row in parts[:3]] == [
        ("world", "stem", True),
        ("stem", "algebra", False),
        ("stem", "physics", False),
    ]
    assert {row[3:] for row in parts} == {(True, 0.0, 1.0)}


def test_the_report_shows_one_row_that_opens(done: tuple[StudySpec, Site]) -> None:
    spec, site = done
    study = load_study_data(site.paths, spec.name)
    page = render_report(study)
    assert page.count("<details><summary>world and its 6 parts</summary>") == 1
    assert page.count("<summary>stem and its 2 parts, and what tuning for world on ") == 1
    assert "<summary>law" not in page
    opened = page.split("<summary>world and its 6 parts</summary>")[1].split("</details>")[0]
    assert [
        opened.index(name) for name in (">stem<", "algebra", "physics", "world::humanities", "law", "history")
    ] == sorted(opened.index(name) for name in (">stem<", "algebra", "physics", "world::humanities", "law", "history"))
    assert opened.count(" %</td>") == 6 * 2  # base and family


def test_nothing_of_it_runs_twice(done: tuple[StudySpec, Site]) -> None:
    spec, site = done
    before: dict[str, Any] = {str(path): path.read_bytes() for path in site.paths.trials.glob("*/*/record.json")}
    assert [run_phase(role, spec, site).exit_code for role in ("base", "search", "confirm")] == [0, 0, 0]
    assert {str(path): path.read_bytes() for path in site.paths.trials.glob("*/*/record.json")} == before
    assert all(json.loads(content)["parts"] for content in before.values())
