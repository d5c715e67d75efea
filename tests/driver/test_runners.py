"""Runners: what each declares, and one of a project's own."""

import pytest

from harness.cli.doctor import examine
from harness.cli.listing import inventory
from harness.errors import UsageError
from harness.files import append_line, read_lines
from harness.plugins import names, use_project
from harness.runners._options import COMMON
from harness.runners.base import Condition, backend, make_runner, parse_options, recorded_jobs
from harness.workers.worker import Duty
from tests.driver import standin

PROCESSES = '''
"""Workers as plain processes."""

import os
import signal
import sys

import cloudpickle

from harness.records.causes import Cause
from harness.runners._queue import JobBackend
from harness.runners.base import Loss, Option, WorkerJob

CODE = """
import pickle, sys
from harness.workers.worker import serve
with open(sys.argv[1], "rb") as file:
    duty = pickle.load(file)
serve(duty)
"""


class Processes(JobBackend):
    summary = "plain processes"
    options = {"nice": Option(int, "how far a worker gives way to others", 5)}
    job_id_variable = "MADE_UP_JOB"
    period_s = 0.1

    def __init__(self, folder, settings):
        super().__init__(folder, settings)
        self.processes = {}

    @classmethod
    def default_workers(cls):
        return 2

    @classmethod
    def device(cls, settings):
        return "cpu"

    def start(self, duty, running):
        self.folder.mkdir(exist_ok=True)
        job = f"made-up-{len(self.processes)}"
        told = self.folder / f"{job}.pickle"
        told.write_bytes(cloudpickle.dumps(duty))
        command = ["nice", "-n", str(self.settings.own["nice"]), sys.executable, "-c", CODE, str(told)]
        self.processes[job] = os.spawnvpe(os.P_NOWAIT, "nice", command, os.environ | {"MADE_UP_JOB": job})
        return WorkerJob(job=job)

    def dead(self, jobs):
        gone = [job.job for job in jobs if os.waitpid(self.processes[job.job], os.WNOHANG)[0]]
        return {job: Loss(Cause.KILLED, "its process died") for job in gone}

    def cancel(self, jobs):
        for job in jobs:
            os.kill(self.processes[job.job], signal.SIGTERM)
            os.waitpid(self.processes[job.job], 0)
'''


@pytest.fixture
def project(tmp_path):
    """A project with a runner of its own."""
    folder = tmp_path / "plugins" / "runners"
    folder.mkdir(parents=True)
    (folder / "processes.py").write_text(PROCESSES)
    use_project(tmp_path)
    yield tmp_path
    use_project(tmp_path / "nothing")


def test_a_runner_of_the_project_runs_a_study(project, tmp_path):
    site = standin.site(tmp_path, "processes", device="auto", options={"idle_s": "1"})
    assert standin.run("base", standin.study(), site).ran == 4
    lines = read_lines(site.paths.study("standin").jobs)
    started = [line["job"] for line in lines if line["event"] == "started"]
    assert {job["runner"] for job in started} == {"processes"}
    assert len(started) == 2
    assert all(job["host"] and job["at"] and job["duty"] for job in started)


def test_it_is_listed_with_its_options(project):
    [entry] = [entry for entry in inventory(project, "runners")["runners"] if entry.name == "processes"]
    assert entry.summary == "plain processes"
    assert entry.space["nice"] == "whole number: how far a worker gives way to others; default 5"
    assert entry.space["workers"].endswith("default 2")
    assert set(entry.space) == {*COMMON, "nice"}


def test_a_runner_refuses_the_options_of_another():
    with pytest.raises(UsageError, match="option of runner local must be one of those known, but got 'nice'"):
        parse_options("local", {"nice": "3"})


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "cpu"), ({"gpus": "0"}, "cpu"), ({"gpus": "2"}, "cuda"), ({"gres": "gpu:1"}, "cuda")]
)
def test_slurm_jobs_have_the_device_that_they_ask_for(given, expected):
    assert backend("slurm").device(parse_options("slurm", given)) == expected


def test_the_names_of_runners_are_exactly_the_runners():
    assert names("runners") == ("inline", "local", "slurm")


def test_workers_of_a_runner_that_is_gone_are_forgotten_with_a_warning(tmp_path, caplog):
    site = standin.site(tmp_path)
    study = site.paths.study("standin")
    study.folder.mkdir(parents=True)
    append_line(study.jobs, {"event": "started", "job": {"runner": "gone", "job": "7", "host": "h"}})
    make_runner("inline", parse_options("inline", {}), study, Duty(study.queue, site.work, None))
    assert recorded_jobs(study.jobs) == []
    assert "1 workers of runner gone could not be ended: runner must be one of those known" in caplog.text


def test_the_doctor_says_what_a_runner_says_of_itself(project, monkeypatch):
    monkeypatch.setattr(backend("processes"), "examine", lambda: Condition("note", "as the test asked"))
    [finding] = [finding for finding in examine(project) if finding.topic == "processes"]
    assert (finding.level, finding.text) == ("note", "as the test asked")
