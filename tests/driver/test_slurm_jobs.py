"""What a Slurm job is told, with a made-up `sbatch` at the boundary; tests/cluster has a real one."""

import os

import pytest

from harness.runners.base import WorkerJob, backend, parse_options
from harness.trial.workspace import Workspace
from harness.workers.worker import Duty


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """An `sbatch` that takes every script and answers with job 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text(f"#!/bin/sh\nenv > {tmp_path}/environment\necho Submitted batch job 7\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_worker_stops_taking_packs_when_nine_tenths_of_its_jobs_time_are_used(tmp_path, paths, sbatch):
    """Of 30 minutes 27: what remains is for the pack in hand, before Slurm kills it."""
    from submitit.core.utils import DelayedSubmission

    slurm = backend("slurm")(tmp_path / "jobs", parse_options("slurm", {"time_min": "30"}))
    duty = Duty(tmp_path / "queue", "harness.trial.group:work", Workspace(paths))
    assert slurm.start(duty, []).job == "7"
    told = DelayedSubmission.load(tmp_path / "jobs" / "7_submitted.pkl")
    assert told.args[0].limit_s == pytest.approx(27 * 60)
    script = next((tmp_path / "jobs").glob("*.sh")).read_text()
    assert "--time=30" in script
    assert "--no-requeue" in script


def test_a_job_keeps_what_site_and_user_want_and_loses_what_the_callers_job_has(tmp_path, paths, sbatch, monkeypatch):
    """For sbatch a variable counts more than its script; srun has had to be told the cores again since 22.05."""
    stays = {"SLURM_CONF": "/site/slurm.conf", "SBATCH_ACCOUNT": "lab", "SBATCH_RESERVATION": "class"}
    callers = {"SLURM_CPU_BIND": "map_cpu:0", "SLURM_JOB_ID": "3", "SLURM_NTASKS": "8", "SRUN_DEBUG": "3", "RANK": "1"}
    said = {"SBATCH_PARTITION": "old", "SBATCH_TIMELIMIT": "5", "SBATCH_REQUEUE": "1", "SBATCH_MEM_PER_CPU": "9"}
    for name, value in (stays | callers | said).items():
        monkeypatch.setenv(name, value)
    settings = parse_options("slurm", {"partition": "gpu", "mem_gb": "2", "cpus": "4"})
    backend("slurm")(tmp_path / "jobs", settings).start(
        Duty(tmp_path, "harness.trial.group:work", Workspace(paths)), []
    )
    lines = (tmp_path / "environment").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if "=" in line)
    assert {name: given.get(name) for name in stays} == stays
    assert not {*callers, *said} & set(given)
    assert {name: os.environ[name] for name in stays | callers | said} == stays | callers | said  # the caller's own
    script = next((tmp_path / "jobs").glob("*.sh")).read_text()
    assert "#SBATCH --cpus-per-task=4" in script
    assert "#SBATCH --mem=2048MB" in script
    assert " --cpus-per-task=4 " in next(line for line in script.splitlines() if line.startswith("srun "))


def test_a_job_is_gone_when_slurm_has_not_known_it_for_half_a_minute_in_a_row(tmp_path, monkeypatch):
    runner = backend("slurm")(tmp_path / "jobs", parse_options("slurm", {}))
    clock, known = [0.0], {}
    monkeypatch.setattr("harness.runners.slurm.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("harness.runners.slurm.slurm_states", lambda jobs: known)
    gone = []
    for clock[0], state in ((0, None), (20, None), (25, "RUNNING"), (40, None), (60, None), (71, None)):
        known.clear()
        known.update({"7": state} if state else {})
        gone.append(list(runner.dead([WorkerJob(job="7")])))
    assert gone == [[], [], [], [], [], ["7"]]  # unknown from 40 s on, which is 31 s ago at 71 s
