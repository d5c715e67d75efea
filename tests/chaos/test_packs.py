"""Workers that hold whole packs are killed; workers that a step left warm are found by the next, or leave."""

import os
import signal
from collections import Counter

from harness.files import read_lines
from harness.records.lost_work import lost_seconds
from harness.records.trial import TrialStatus
from tests.chaos.drive import STUDY
from tests.chaos.test_kills import alive
from tests.driver import standin
from tests.patience import PATIENCE_S

TOGETHER = {"STANDIN_TOGETHER": "1", "STANDIN_TRIALS": "4"}
"""Two families of four trials; each family is a pack."""


def events(scene, name):
    return [line for line in read_lines(scene.paths.study(STUDY.name).jobs) if line["event"] == name]


def test_of_a_pack_whose_worker_was_killed_the_rest_runs_again_one_by_one(scene):
    driver = scene.start(**TOGETHER, STANDIN_COST="0.1")
    key, pid = scene.wait_for("ran", 3)[2]  # two workers: at least one has gone on to its second trial
    kept = {done for done, worker in scene.lines("done") if worker == pid}
    os.kill(int(pid), signal.SIGKILL)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    lost = events(scene, "lost")
    assert kept
    assert key in {line["key"] for line in lost}
    assert {line["key"] for line in lost}.isdisjoint(kept)
    assert {(line["of"], line["blamed"]) for line in lost} == {(len(lost), False)}
    ran = Counter(key for key, _ in scene.lines("ran"))
    assert len(ran) == 8
    assert ran[key] == 2
    assert ran.total() == 8 + 1  # the others of its pack had not begun
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())
    assert sum(lost_seconds(scene.paths, STUDY.name).values()) > 0


def test_a_trial_that_kills_every_worker_does_not_take_its_pack_along(scene):
    said = scene.finish(**TOGETHER, STANDIN_TROUBLE="die-by-default", STANDIN_SECONDS="0")
    guilty = [r for r in scene.records() if r.config.pipeline.stages[0].params["learning_rate"] == standin.DEFAULT_RATE]
    innocent = [result for result in scene.records() if result not in guilty]
    assert [result.status for result in guilty] == [TrialStatus.CRASHED] * 2, said  # the first of each family
    assert [result.status for result in innocent] == [TrialStatus.COMPLETE] * 6
    ran = Counter(key for key, _ in scene.lines("ran"))
    assert {ran[result.config.key] for result in guilty} == {
        3
    }  # once in its pack, for which nobody is blamed, and twice
    assert {ran[result.config.key] for result in innocent} == {1}
    blamed = Counter(line["key"] for line in events(scene, "lost") if line["blamed"])
    assert blamed == {result.config.key: 2 for result in guilty}
    # The last loss of each is its record; the seconds of those before are in the ledger only.
    recorded = sum(result.cost.seconds["lost"] for result in guilty)
    assert recorded > 0
    lines = [line for line in events(scene, "lost") if line["key"] in blamed]
    assert [line["seconds"] for line in lines if line["blamed"]].count(0.0) == 2


def test_a_killed_driver_goes_on_with_the_packs_that_it_had(scene):
    driver = scene.start(**TOGETHER)
    scene.wait_for("ran", 3)
    driver.kill()
    driver.wait()
    scene.finish(**TOGETHER)
    ran = [key for key, _ in scene.lines("ran")]
    assert len(ran) == len(set(ran)) == 8
    assert len(events(scene, "started")) == 2
    assert events(scene, "lost") == []


def test_what_an_interrupt_threw_away_is_written_down_and_nobody_is_blamed(scene):
    driver = scene.start(**TOGETHER)
    scene.wait_for("ran", 4)
    os.killpg(driver.pid, signal.SIGINT)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 130, said
    lost = events(scene, "lost")
    assert {line["reason"] for line in lost} == {"stopped by the driver"}
    assert not any(line["blamed"] for line in lost)
    assert sum(line["seconds"] for line in lost) > 0


def test_the_next_step_finds_the_workers_of_the_last_one_warm(scene):
    scene.arguments.append("idle_s=60")
    scene.finish(STANDIN_PHASE="base")
    first = {pid for _, pid in scene.lines("ran")}
    assert all(alive(pid) for pid in first)
    scene.finish(STANDIN_PHASE="search")
    assert {pid for _, pid in scene.lines("ran")} == first
    assert len(events(scene, "started")) == 2
    assert events(scene, "ended") == []


def test_workers_that_were_told_something_else_are_not_taken_over(scene):
    scene.finish(STANDIN_PHASE="base")
    first = {pid for _, pid in scene.lines("ran")}
    scene.finish(STANDIN_PHASE="search", HARNESS_SOMETHING="else")
    assert not any(alive(pid) for pid in first)
    assert {line["reason"] for line in events(scene, "ended")} == {"unfit for what is to be done"}
    assert len(events(scene, "started")) == 4


def test_after_the_last_step_no_worker_stays(scene):
    for step in ("base", "search", "confirm"):
        scene.finish(STANDIN_PHASE=step, STANDIN_SECONDS="0")
    assert not any(alive(pid) for _, pid in scene.lines("ran"))


def test_warm_workers_do_not_hold_the_callers_pipes_open(scene):
    scene.arguments.append("idle_s=600")
    scene.finish(STANDIN_PHASE="base")  # reads the driver's output to its end
    assert all(alive(pid) for _, pid in scene.lines("ran"))
