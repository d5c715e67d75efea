"""Drivers and workers are killed, disks fill up: nothing runs twice, nothing is lost."""

import os
import signal
import socket
import time
from pathlib import Path

from harness.records.causes import Cause
from harness.records.lost_work import read_lost
from harness.records.trial import TrialStatus
from tests.chaos.drive import RUNS, STUDY
from tests.patience import PATIENCE_S


def alive(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_driver_goes_on_with_the_workers_it_had_and_runs_nothing_twice(scene):
    driver = scene.start()
    scene.wait_for("ran", 3)
    driver.kill()
    driver.wait()
    begun = scene.lines("ran")
    scene.finish()
    ran = scene.lines("ran")
    assert len(ran) == len({key for key, _ in ran}) == RUNS
    assert {pid for _, pid in ran} == {pid for _, pid in begun}
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())


def test_a_driver_killed_over_and_over_ends_with_every_trial_run_once(scene):
    for count in (1, 3, 5):
        driver = scene.start()
        scene.wait_for("ran", count)
        driver.kill()
        driver.wait()
    scene.finish()
    ran = [key for key, _ in scene.lines("ran")]
    assert len(ran) == len(set(ran)) == RUNS


def test_workers_leave_when_nobody_gives_them_work(scene):
    scene.arguments.append("idle_s=2")
    scene.finish()
    pids = {pid for _, pid in scene.lines("ran")}
    assert len(pids) == 2
    end = time.monotonic() + PATIENCE_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, "an idle worker must leave by itself"
        time.sleep(0.1)


def test_what_a_killed_worker_held_runs_again_once(scene):
    driver = scene.start()
    scene.wait_for("ran", 2)
    key, pid = scene.lines("ran")[0]
    while any(done == key for done, _ in scene.lines("done")):  # the trial that runs now, not one that is over
        key, pid = next(line for line in reversed(scene.lines("ran")) if line[1] == pid)
        time.sleep(0.02)
    os.kill(int(pid), signal.SIGKILL)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    ran = [name for name, _ in scene.lines("ran")]
    assert ran.count(key) == 2
    assert len(ran) == RUNS + 1
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())


def test_a_trial_that_crashes_every_worker_is_recorded_after_its_second(scene):
    said = scene.finish(STANDIN_TROUBLE="crash", STANDIN_SECONDS="0", STANDIN_TRIALS="1")
    ran = [key for key, _ in scene.lines("ran")]
    assert ran == [ran[0]] * 2
    assert {result.status for result in scene.records()} == {TrialStatus.CRASHED}
    [reason] = {result.reason for result in scene.records()}
    assert reason.startswith("its worker process died (Fatal Python error: Segmentation fault")
    assert "2 failed" in said  # one record, in both families


def test_a_trial_whose_worker_is_killed_three_times_ends_by_itself_in_the_end(scene):
    """Nobody knows who killed it, and it is no fault of the trial's; three more than the two that a crash has."""
    scene.finish(STANDIN_TROUBLE="killed-thrice", STANDIN_SECONDS="0", STANDIN_TRIALS="1")
    assert len(scene.lines("ran")) == 4
    assert {result.status for result in scene.records()} == {TrialStatus.COMPLETE}
    lost = read_lost(scene.paths.study(STUDY.name).jobs)
    assert [(line.cause, line.blamed) for line in lost] == [(Cause.KILLED, False)] * 3


def test_a_worker_dies_with_the_controller_that_started_it(scene):
    """Otherwise it would train on beside the worker that gets its trial."""
    driver = scene.start(STANDIN_SECONDS="3", STANDIN_TRIALS="1")
    [(key, worker)] = scene.wait_for("ran", 1)
    os.kill(int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    assert not alive(worker)
    assert [name for name, _ in scene.lines("ran")] == [key, key]
    assert [name for name, _ in scene.lines("done")] == [key]


def test_a_full_disk_is_an_error_and_the_trials_run_again(scene):
    said = scene.finish(code=5, STANDIN_TROUBLE="full-disk", STANDIN_SECONDS="0")
    assert "free space" in said
    assert scene.records()
    assert set(scene.records()) == {None}
    before = len(scene.lines("done"))
    scene.finish()
    assert len({key for key, _ in scene.lines("done")[before:]}) == RUNS
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())


def test_an_interrupted_driver_takes_its_workers_with_it_and_keeps_what_is_done(scene):
    driver = scene.start(STANDIN_SECONDS="0.3")
    scene.wait_for("done", 2)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 130, said
    assert not any(alive(pid) for _, pid in scene.lines("ran"))
    done = {key for key, _ in scene.lines("done")}
    scene.finish()
    after = [key for key, _ in scene.lines("ran")]
    assert all(after.count(key) == 1 for key in done)
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())


def test_a_second_driver_of_a_study_waits_for_the_first_and_finds_all_done(scene):
    first = scene.start(STANDIN_SECONDS="2")
    scene.wait_for("ran", 1)
    said = scene.finish()
    assert f"process {first.pid} on {socket.gethostname()} runs {STUDY.name}: this command goes on when" in said
    assert "(0 ran now" in said
    first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0
    assert len(scene.lines("ran")) == RUNS


def test_another_runner_ends_the_workers_of_the_first(scene):
    driver = scene.start()
    scene.wait_for("ran", 2)
    driver.kill()
    driver.wait()
    workers = {pid for _, pid in scene.lines("ran")}
    scene.arguments[1:] = ["inline"]
    scene.finish(STANDIN_SECONDS="0")
    assert not any(alive(pid) for pid in workers)
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())
    done = [key for key, _ in scene.lines("done")]
    assert len(done) == len(set(done)) == RUNS
