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

    def begin(seconds, eats_mb=0, **options):
        scene = Scene(tmp_path, "slurm", **{"workers": 1, "partition": "main", "time_min": 5, "mem_gb": 0.3} | options)
        scenes.append(scene)
        return scene, scene.start(STANDIN_SECONDS=str(seconds), STANDIN_TRIALS="1", STANDIN_EATS_MB=str(eats_mb))

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
    return said


def scontrol(job):
    """What Slurm knows of a job."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)


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


def test_a_job_with_too_little_memory_is_followed_by_one_with_twice_as_much(begin):
    """A worker of some 100 MB that holds 400 more does not fit 0.4 GB, and fits 0.8."""
    scene, driver = begin(seconds=15, mem_gb=0.4, eats_mb=400)
    said, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == 0, said
    assert [result.status for result in scene.records()] == [TrialStatus.COMPLETE], said
    lost = read_lost(scene.paths.study(STUDY.name).jobs)
    assert [line.cause for line in lost] == [Cause.HOST_MEMORY], said
    assert [scontrol(line["job"]["job"])["MinMemoryNode"] for line in started(scene)] == ["410M", "819M"]


def test_a_node_that_kills_three_workers_is_excluded_and_a_sites_flags_reach_every_job(begin):
    """Slurm gives every job the first idle node, so that without the driver's doing all four would be on it."""
    scene, driver = begin(seconds=20, sbatch="--comment=mine --nice=7")
    nodes = []
    for count in (1, 2, 3, 4):
        scene.wait_for("ran", count)
        job, node = newest(scene)
        nodes.append(node)
        told = scontrol(job)
        assert (told["Comment"], told["Nice"]) == ("mine", "7")
        assert told.get("ExcNodeList") == (nodes[0] if count == 4 else "(null)")
        if count < 4:
            os.kill(int(scene.lines("ran")[-1][1]), signal.SIGKILL)  # scancel would say that somebody did it
    assert nodes[:3] == [nodes[0]] * 3
    assert nodes[3] != nodes[0]
    said = assert_ended_well(scene, driver, [Cause.KILLED] * 3)
    assert f"node {nodes[0]} gets no more workers" in said


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
