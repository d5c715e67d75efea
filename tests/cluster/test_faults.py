"""What a real Slurm does to a worker is never charged to its trial: preemption, time limits, dead nodes, a new controller."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.records.causes import Cause
from harness.records.lost_work import read_lost
from harness.records.trial import TrialStatus
from harness.runners.slurm import slurm_states
from tests.chaos.conftest import Scene
from tests.chaos.drive import STUDY
from tests.cluster.test_slurm import started
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def begin(tmp_path):
    """Starts a driver of one trial with one Slurm job at a time; what is left in the end is cancelled."""
    scenes = []

    def begin(seconds, **options):
        scene = Scene(tmp_path, "slurm", **{"workers": 1, "partition": "main", "time_min": 5, "mem_gb": 0.3} | options)
        scenes.append(scene)
        return scene, scene.start(STANDIN_SECONDS=str(seconds), STANDIN_TRIALS="1")

    yield begin
    for scene in scenes:
        for driver in scene.drivers:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
            driver.stdout.close()
            driver.wait()
        subprocess.run(["scancel", *(line["job"]["job"] for line in started(scene))], capture_output=True)


def assert_ended_well(scene, driver, causes):
    """The trial has one record, its own; what was lost is written down with its seconds, and charged to nobody."""
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    assert [result.status for result in scene.records()] == [TrialStatus.COMPLETE]
    assert len(scene.lines("ran")) == len(causes) + 1, said
    assert len(scene.lines("done")) == 1
    lost = read_lost(scene.paths.study(STUDY.name).jobs)
    assert [line.cause for line in lost] == causes, said
    assert not any(line.blamed for line in lost)
    assert all(line.seconds > 0 for line in lost)


def newest(scene):
    """The job that holds the trial, and its node."""
    job = started(scene)[-1]["job"]["job"]
    node = subprocess.run(["squeue", "-h", "-j", job, "-o", "%N"], capture_output=True, text=True, check=True).stdout
    return job, node.strip()


def wait_for_state(job, state):
    end = time.monotonic() + PATIENCE_S
    while slurm_states([job]).get(job) != state:
        assert time.monotonic() < end, slurm_states([job])
        time.sleep(0.2)


def test_ten_preemptions_of_the_same_trial(begin):
    """A job of a partition with a higher priority takes the whole node, again and again."""
    scene, driver = begin(seconds=20)
    for count in range(1, 11):
        scene.wait_for("ran", count)
        job, node = newest(scene)
        urgent = ["sbatch", "-p", "urgent", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 0.1"]
        subprocess.run(urgent, check=True, capture_output=True)
        wait_for_state(job, "PREEMPTED")
    assert_ended_well(scene, driver, [Cause.PREEMPTED] * 10)


def test_a_time_limit_that_is_shorter_than_the_trial_is_doubled_until_it_is_not(begin):
    """A minute less the half that a worker has to leave is too short for 40 s, two minutes are long enough."""
    scene, driver = begin(seconds=40, time_min=1)
    assert_ended_well(scene, driver, [Cause.JOB_TIME])


def test_a_node_that_goes_down_and_comes_back(begin):
    scene, driver = begin(seconds=15)
    scene.wait_for("ran", 1)
    job, node = newest(scene)
    set_node = ["scontrol", "update", f"nodename={node}"]
    subprocess.run([*set_node, "state=down", "reason=test"], check=True)
    try:
        wait_for_state(job, "NODE_FAIL")
    finally:
        subprocess.run([*set_node, "state=idle"], check=True)
    assert_ended_well(scene, driver, [Cause.NODE_FAILED])


def test_slurm_cannot_requeue_a_worker_and_a_new_controller_changes_nothing(begin):
    """The driver alone decides what runs again; while nobody answers, it waits."""
    scene, driver = begin(seconds=25)
    scene.wait_for("ran", 1)
    job, _ = newest(scene)
    assert subprocess.run(["scontrol", "requeue", job], capture_output=True).returncode != 0
    os.kill(int(Path("/run/slurm/slurmctld.pid").read_text()), signal.SIGTERM)
    time.sleep(8)
    subprocess.run(["bash", REPOSITORY / "scripts" / "start_slurm.sh"], check=True, capture_output=True)
    assert_ended_well(scene, driver, [])
