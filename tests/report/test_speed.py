"""What was saved and against what, by figures set by hand; comparisons go by what a trial would take alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.database.ingest import connect
from harness.files import append_line
from harness.plugins import load
from harness.recommend.features import observations
from harness.records.lost_work import Stop
from harness.records.paths import Paths
from harness.report.data import StudyData, load_study_data
from harness.report.findings import compare
from harness.report.page import FOLDER
from tests.fabricate import ALONE, GAIN
from tests.report.studies import change_records, keep_members, write_small


def shown(name: str, study: StudyData) -> str:
    return str(load(FOLDER, name)().render(study) or "")


def of_family(paths: Paths, **wanted: str) -> list[str]:
    """Keys of the study's members."""
    lines = paths.study("made_up").members.read_text().splitlines()
    return [m["key"] for m in map(json.loads, lines) if all(m[name] == value for name, value in wanted.items())]


def changed(folder: Path, change: Callable[[str, dict[str, Any]], None]) -> StudyData:
    """The small study after `change(key, record)` of every record."""
    paths = write_small(folder)
    change_by_key(paths, change)
    return load_study_data(paths, "made_up")


def change_by_key(paths: Paths, change: Callable[[str, dict[str, Any]], None]) -> None:
    keys = iter([path.parent.name for path in sorted(paths.trials.glob("*/*/record.json"))])
    change_records(paths, lambda record: change(next(keys), record))


def not_together(record: dict[str, Any]) -> None:
    record["cost"] |= {"trained_with": 1, "solo_equivalent_s": None}


def test_what_training_together_saved_is_the_difference_to_training_alone(tmp_path: Path) -> None:
    paths = write_small(tmp_path)
    four = of_family(paths, role="search", family="lora", task="task_0")
    assert len(four) == 4

    def change(key: str, record: dict[str, Any]) -> None:
        not_together(record)
        if key in four:
            record["cost"]["seconds"] = {"load": 1.0, "train": 10.0, "evaluate": 2.0}
            size = 3 if four.index(key) < 3 else 1
            record["cost"] |= {"trained_with": size, "solo_equivalent_s": 25.0 if size == 3 else None}
            record["cost"]["utilisation"] = (0.2, 0.05, 0.3, 0.4)[four.index(key)]

    study = changed(tmp_path, change)
    text = shown("speed", study)
    # three of them together: 30 s instead of 75 s; the fourth alone took its 10 s
    assert "3 at a time (3 trials)" in text
    assert "Their training took 30.0 s" in text
    assert "would have taken 1.2 min: 45.0 s saved, 2.5 times as fast." in text
    only = replace(study, trials=[trial for trial in study.trials if trial.key in four])
    row = shown("speed", only)
    # utilisation .2, .05, .3, .4: the median is .25
    cells = ["4", "3", "40.0 s", "1.4 min", "45.0 s", "25%"]
    assert "".join(f'<td class="number">{cell}</td>' for cell in cells) in row


def test_what_was_lost_by_training_together_is_said(tmp_path: Path) -> None:
    def change(key: str, record: dict[str, Any]) -> None:
        if record["cost"]["solo_equivalent_s"] is not None:
            record["cost"]["seconds"]["train"] = 1.5 * record["cost"]["solo_equivalent_s"]

    text = shown("speed", changed(tmp_path, change))
    assert "lost, not saved." in text
    assert "times as fast" not in text


def test_reused_trials_saved_this_study_nothing(small: Paths) -> None:
    study = load_study_data(small, "made_up")
    together = sum(trial.trained_with > 1 for trial in study.ran)
    assert f"{together} of the" in shown("speed", study)
    trials = [replace(trial, reused=trial.role == "search") for trial in study.trials]
    confirmed = len(of_family(small, role="confirm", family="lora"))
    assert f"<p>{confirmed} of the" in shown("speed", replace(study, trials=trials))


def test_the_reasons_for_training_alone_are_counted(small: Paths) -> None:
    study = load_study_data(small, "made_up")
    alone = sum(trial.alone == ALONE for trial in study.ran)
    assert alone > 10
    assert f"<li>{alone} trials: {ALONE.replace(chr(39), '&#x27;')}</li>" in shown("speed", study)


def test_nothing_is_shown_where_nothing_was_saved(tmp_path: Path) -> None:
    def change(key: str, record: dict[str, Any]) -> None:
        not_together(record)
        record["provenance"]["effective"] = {}

    assert shown("speed", changed(tmp_path, change)) == ""


def test_records_from_before_trials_trained_together_count_as_alone(tmp_path: Path) -> None:
    def change(key: str, record: dict[str, Any]) -> None:
        for name in ("trained_with", "solo_equivalent_s", "utilisation"):
            del record["cost"][name]

    study = changed(tmp_path, change)
    assert {trial.trained_with for trial in study.ran} == {1}
    assert all(trial.solo_train_s == (trial.train_s or 0.0) for trial in study.ran)
    assert "Training together" not in shown("speed", study)


@pytest.fixture
def halved(tmp_path: Path) -> StudyData:
    """Of task_0's trials of family full: numbers 0 and 1 stopped at 1/4, number 2 went on from there to the end.

    Number 3 failed at 1/4. Training took 10 s to 1/4, and number 2 took 50 s for the rest.
    """
    paths = write_small(tmp_path)
    path = paths.study("made_up").members
    members = [json.loads(line) for line in path.read_text().splitlines()]
    cell = [m for m in members if (m["role"], m["family"], m["task"]) == ("search", "full", "task_0")]
    keys = {m["number"]: m["key"] for m in cell}
    spare = next(m["key"] for m in members if (m["role"], m["family"]) == ("search", "full_replay"))
    top = dict(cell[2]) | {"key": spare}
    path.write_text("".join(json.dumps(member) + "\n" for member in [*members, top]))

    def change(key: str, record: dict[str, Any]) -> None:
        if key in (*keys.values(), spare):
            not_together(record)
            record["status"], record["reason"] = "complete", ""
            record["config"]["fidelity"] = 1.0 if key == spare else 0.25
            record["cost"]["seconds"] = {"train": 50.0 if key == spare else 10.0}
        if key == keys[3]:
            record["status"] = "diverged"

    change_by_key(paths, change)
    keep_members(paths, "made_up", lambda m: (m["role"], m["family"], m["task"]) == ("search", "full", "task_0"))
    return load_study_data(paths, "made_up")


def test_what_stopping_early_saved_goes_by_the_familys_pace(halved: StudyData) -> None:
    # a full run at each trial's pace: 40, 40 and 10 + 50 = 60 s, median 40; two trials left 3/4 of it: 60 s
    text = shown("speed", halved)
    assert "2 of 4 search trials were stopped after 25% of their training" in text
    assert "would have taken 1.0 min. That is what was saved" in text


def test_a_trial_that_may_still_go_on_has_saved_nothing_yet(halved: StudyData) -> None:
    first = next(trial for trial in halved.trials if trial.number == 0)
    waiting = replace(first, status=None, fidelity=None, train_s=None)
    text = shown("speed", replace(halved, trials=[*halved.trials, waiting]))
    assert "1 of 4 search trials was stopped" in text


STOP = Stop(
    family="lora",
    task="task_0",
    base_model="tiny-1m",
    scored=3,
    left=5.0,
    seconds=90.0,
    best=0.41,
    leader=0.55,
    leader_family="full",
    chance=0.013,
    limit=0.05,
    at="2026-11-22T10:00:00+00:00",
)


def test_families_that_gave_up_are_named_with_what_that_saved(tmp_path: Path) -> None:
    paths = write_small(tmp_path)
    path = paths.study("made_up").stops
    for stop in (STOP, replace(STOP, task="task_1", left=2.5, seconds=30.0)):
        append_line(path, {name: getattr(stop, name) for name in Stop.__dataclass_fields__})
    study = load_study_data(paths, "made_up")
    text = shown("speed", study)
    assert "2 searches of one family on one task stopped before the tuning budget was used" in text
    assert "was at most 5%" in text
    assert "The 7.5 full trials that were not run would have taken about 2.0 min" in text
    for cell in ("41.0 %", "55.0 %", "at most 0.013", "1.5 min"):
        assert f'<td class="number">{cell}</td>' in text
    assert (
        "The search gave up on these families before their tuning budget was used: lora (after 3 scored trials)."
        in shown("method_comparison", study)
    )
    assert "gave up on" not in shown("method_comparison", replace(study, stops=()))


def test_lost_attempts_are_part_of_the_bill(tmp_path: Path) -> None:
    paths = write_small(tmp_path)
    jobs = paths.study("made_up").jobs
    key = of_family(paths, role="search", family="lora")[0]
    for seconds in (90.0, 30.0):
        append_line(jobs, {"event": "lost", "key": key, "seconds": seconds, "of": 1, "blamed": True, "reason": "x"})
    without = load_study_data(write_small(tmp_path / "other"), "made_up")
    study = load_study_data(paths, "made_up")
    spent = sum(trial.total_s for trial in study.ran)
    assert spent == pytest.approx(sum(trial.total_s for trial in without.ran))
    assert f"in {(spent + 120) / 60:.1f} min of trial time (2.0 min of it in attempts that were lost)" in shown(
        "answer", study
    )
    text = shown("cost", study)
    assert "here 2.0 min of 1 trial" in text
    assert f"{(spent + 120) / 60:.1f} min in all" in text
    assert '<th scope="col" class="number">lost</th>' in text
    assert "Lost time" not in shown("cost", without)


def test_the_bill_counts_shares(small: Paths) -> None:
    ran = load_study_data(small, "made_up").ran
    together = [trial for trial in ran if trial.trained_with > 1]
    assert [trial.solo_train_s / trial.train_s for trial in together] == pytest.approx([GAIN] * len(together))
    assert f"{sum(trial.total_s for trial in ran) / 60:.1f} min of trial time" in shown(
        "answer", load_study_data(small, "made_up")
    )


def test_methods_are_compared_by_what_each_would_take_alone(tmp_path: Path) -> None:
    """Two finalists that train equally long alone; one of them trained with others, in a tenth of the time."""
    paths = write_small(tmp_path)
    confirmed = {c.family: c for c in compare(load_study_data(paths, "made_up"))[0].contenders}
    packed = set(of_family(paths, role="confirm", task="task_0", family=min(confirmed)))

    def change(key: str, record: dict[str, Any]) -> None:
        fused = key in packed
        record["cost"] |= {"trained_with": 5 if fused else 1, "solo_equivalent_s": 40.0 if fused else None}
        record["cost"] |= {"seconds": {"load": 1.0, "train": 4.0 if fused else 40.0}, "money": 0.5 if fused else 4.1}
        record["curve"] = [point | {"train_seconds": 2.0 if fused else 20.0} for point in record["curve"]]

    study = changed(tmp_path, change)
    contenders = compare(study)[0].contenders
    assert [c.train_s for c in contenders] == [40.0, 40.0]
    # 0.5 for 5 s is 4.1 for the 41 s that it would have taken alone
    assert [c.money for c in contenders] == pytest.approx([4.1, 4.1])
    assert {point.train_seconds for point in study.curves} == {20.0}
    with connect(paths) as database:
        board = database.execute("SELECT seconds, money FROM leaderboard WHERE task = 'task_0'").fetchall()
        seen = observations(paths, database)
    assert board == [(40.0, pytest.approx(4.1))] * 2
    assert {o.seconds for o in seen} == {41.0}
