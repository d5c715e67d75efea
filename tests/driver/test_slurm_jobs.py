"""What a Slurm job is told, with a made-up `sbatch` at the boundary; tests/cluster has a real one."""

import pytest

from harness.runners.base import backend, parse_options
from harness.trial.workspace import Workspace
from harness.workers.worker import Duty


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """An `sbatch` that takes every script and answers with job 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        (folder / name).write_text("#!/bin/sh\necho Submitted batch job 7\n")
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
