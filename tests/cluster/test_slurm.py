"""A real Slurm: studies through it, and what happens when it takes a worker away. `scripts/start_slurm.sh` starts one."""

import os
import signal
import subprocess
import time

import pytest

from harness.files import read_lines
from harness.records.trial import TrialStatus
from harness.runners.slurm import SlurmBackend, slurm_states
from tests.chaos.conftest import Scene
from tests.chaos.drive import RUNS, STUDY
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


@pytest.fixture
def scene(tmp_path):
    """Two Slurm jobs as workers; whatever they left is cancelled."""
    made = Scene(tmp_path, "slurm", workers=2, partition="main", time_min=5, mem_gb=0.3)
    yield made
    for driver in made.drivers:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
        driver.stdout.close()
        driver.wait()
    jobs = [line["job"]["job"] for line in started(made)]
    subprocess.run(["scancel", *jobs], capture_output=True)


def started(scene):
    lines = read_lines(scene.paths.study(STUDY.name).jobs)
    return [line for line in lines if line["event"] == "started"]


def wait_until_gone(jobs):
    end = time.monotonic() + PATIENCE_S
    while any(state in ("RUNNING", "COMPLETING", "PENDING") for state in slurm_states(jobs).values()):
        assert time.monotonic() < end, slurm_states(jobs)
        time.sleep(0.2)


def test_a_study_runs_through_slurm_and_leaves_no_job_behind(scene):
    scene.arguments.append("idle_s=5")
    said = scene.finish()
    ran = [key for key, _ in scene.lines("ran")]
    assert len(ran) == len(set(ran)) == RUNS, said
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())
    jobs = [line["job"]["job"] for line in started(scene)]
    assert len(jobs) == 2
    wait_until_gone(jobs)
    assert scene.paths.study(STUDY.name).logs.stat().st_mode & 0o777 == 0o700


def test_the_next_step_finds_the_jobs_of_the_last_one_warm(scene):
    scene.finish(STANDIN_PHASE="base")
    scene.finish(STANDIN_PHASE="search")
    assert len(started(scene)) == 2
    jobs = [line["job"]["job"] for line in started(scene)]
    assert set(slurm_states(jobs).values()) == {"RUNNING"}


def test_a_cancelled_worker_is_seen_and_its_trial_runs_again(scene):
    driver = scene.start(STANDIN_SECONDS="2")
    scene.wait_for("ran", 2)
    job = started(scene)[0]["job"]["job"]
    subprocess.run(["scancel", job], check=True)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    assert f"its Slurm job {job} ended as CANCELLED" in said
    ran = [key for key, _ in scene.lines("ran")]
    assert len(ran) == RUNS + 1
    assert len(set(ran)) == RUNS
    assert len(started(scene)) == 3
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())


def test_a_killed_driver_finds_its_jobs_again(scene):
    driver = scene.start(STANDIN_SECONDS="1")
    scene.wait_for("ran", 3)
    driver.kill()
    driver.wait()
    scene.finish()
    ran = [key for key, _ in scene.lines("ran")]
    assert len(ran) == len(set(ran)) == RUNS
    assert len(started(scene)) == 2


def test_a_worker_killed_on_its_node_is_lost_and_not_requeued_by_slurm(scene):
    driver = scene.start(STANDIN_SECONDS="2")
    scene.wait_for("ran", 2)
    job = started(scene)[0]["job"]["job"]
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    assert "Requeue=0" in shown
    subprocess.run(["scancel", "--signal=KILL", job], check=True)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    assert slurm_states([job])[job] != "PENDING"
    ran = [key for key, _ in scene.lines("ran")]
    assert (len(set(ran)), len(ran)) in ((RUNS, RUNS), (RUNS, RUNS + 1))
    assert all(result.status == TrialStatus.COMPLETE for result in scene.records())


def test_what_slurm_refuses_is_said_in_its_words(tmp_path):
    said = Scene(tmp_path, "slurm", partition="nowhere").finish(code=1)
    assert "invalid partition" in said
    assert "--runner-option" in said
    assert "Traceback" not in said


def test_a_job_that_slurm_has_forgotten_counts_as_gone_after_a_while(tmp_path, monkeypatch):
    from harness.runners.base import WorkerJob, parse_options

    backend, job = SlurmBackend(tmp_path, parse_options("slurm", {})), WorkerJob(job="99999999")
    assert backend.dead([job]) == {}
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 31)
    assert "GONE" in backend.dead([job])["99999999"].reason


def test_a_job_with_several_gpus_has_a_worker_on_each(scene):
    """Its devices are files that Slurm counts: what is real here is what Slurm lets a job see."""
    scene.arguments += ["gpus=2", "workers=4", "mem_gb=0.6"]
    said = scene.finish(STANDIN_SECONDS="1", STANDIN_GPUS=str(scene.folder / "gpus"))
    assert "complete" in {str(result.status) for result in scene.records()}, said
    ran = scene.lines("ran")
    assert len(ran) == len({key for key, _ in ran}) == RUNS
    jobs = [line["job"]["job"] for line in started(scene)]
    assert len(jobs) == 2
    workers = set(scene.lines("gpus"))
    assert sorted((gpu, job) for gpu, job, _ in workers) == sorted((gpu, job) for gpu in "01" for job in jobs)
    shown = subprocess.run(["scontrol", "show", "job", jobs[0]], capture_output=True, text=True, check=True).stdout
    assert "gres:gpu:2" in shown
