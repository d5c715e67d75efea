"""What a study comes to is the same wherever it is said: page, status, running study, advice."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from harness.cli.advice import Answer, _measured
from harness.cli.main import _said
from harness.cli.status import looks
from harness.database.ingest import ingest
from harness.plugins import load
from harness.records.bill import Halt, Share, write_halt
from harness.report.conclusion import said, said_now
from harness.report.data import load_study_data
from tests.fabricate import Fabricated, fabricate, study_spec
from tests.report.studies import paths_in

if TYPE_CHECKING:
    from pathlib import Path

    from harness.records.paths import Paths


@pytest.fixture(scope="module")
def unread(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, Fabricated]:
    """Two studies, of which there is no database; `made_up` alone has confirmed runs with items."""
    paths = paths_in(tmp_path_factory.mktemp("unread"))
    fabricate(paths, study_spec("other", tasks=1, trials=1, seeds=2))
    paths.study("other").members.write_text("")
    return paths, fabricate(paths, study_spec(tasks=1, trials=2, seeds=3), items=40)


def test_records_that_no_database_has_say_what_the_page_will_say(unread: tuple[Paths, Fabricated]) -> None:
    paths, _ = unread
    now = said_now(paths, "made_up")
    assert [(one.base_model, one.task) for one in now] == [("tiny-1m", "task_0")]
    assert "from 3 seeds and 40 test items" in now[0].text
    ingest(paths)
    try:
        assert said(load_study_data(paths, "made_up")) == now
    finally:
        paths.database.unlink()


def test_status_says_it_under_the_study(unread: tuple[Paths, Fabricated]) -> None:
    paths, _ = unread
    other, made_up = sorted(next(looks(paths, None, watch=False)), key=lambda row: row.study, reverse=True)
    assert (other.study, other.verdicts) == ("other", ())
    assert made_up.verdicts == tuple(one.text for one in said_now(paths, "made_up"))
    assert made_up.text().splitlines()[-1] == f"  {made_up.verdicts[0]}"


def test_a_seed_that_is_still_running_is_left_out(unread: tuple[Paths, Fabricated], tmp_path: Path) -> None:
    paths, made = unread
    last = [m["key"] for m in made.members if m["role"] == "confirm" and m["repetition"] == 2]
    hidden = {paths.record(str(key)): paths.record(str(key)).read_bytes() for key in last}
    for path in hidden:
        path.unlink()
    try:
        assert "from 2 seeds" in said_now(paths, "made_up")[0].text
    finally:
        for path, content in hidden.items():
            path.write_bytes(content)


def test_advice_on_a_measured_task_begins_with_its_verdict(unread: tuple[Paths, Fabricated]) -> None:
    paths, made = unread
    config = made.results[0].config
    base: Any = SimpleNamespace(ref=config.pipeline.base_model)
    task: Any = SimpleNamespace(name="task_0", ref=config.task)
    ingest(paths)
    try:
        [measured] = _measured(paths, task, base)
        edited = replace(config.task, fingerprint="edited since")
        assert not list(_measured(paths, SimpleNamespace(name="task_0", ref=edited), base))  # type: ignore[arg-type]
    finally:
        paths.database.unlink()
    assert measured == f"Measured by study made_up: {said_now(paths, 'made_up')[0].text}"
    assert Answer("task_0", "tiny-1m", measured=(measured,)).text() == measured


def test_a_damaged_file_does_not_stop_a_study_that_runs(unread: tuple[Paths, Fabricated]) -> None:
    paths, _ = unread
    plan = paths.study("other").plan
    plan.write_text("torn")
    [line] = _said(paths, "other")
    plan.unlink()
    assert line.startswith("no verdict can be given: ")
    assert str(plan) in line


def test_a_study_that_its_budget_stopped_is_given_no_verdict(unread: tuple[Paths, Fabricated]) -> None:
    paths, _ = unread
    files = paths.study("made_up")
    shares = {"lora": Share(ended=1, planned=3)}
    write_halt(files, Halt(phase="confirm", text="made_up <b>has</b> spent it", families=shares, at="2026-11-28"))
    try:
        [one] = said_now(paths, "made_up")
        study = load_study_data(paths, "made_up", confirmed_now=True)
    finally:
        files.halt.unlink()
    reason = "That cannot be tested: the study's budget was reached before its confirm had ended."
    assert one.text == f"For task_0 on tiny-1m, nothing can be said yet. {reason}"
    page = str(load("report/sections", "answer")().render(study))
    assert "made_up &lt;b&gt;has&lt;/b&gt; spent it." in page
