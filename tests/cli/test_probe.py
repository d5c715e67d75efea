"""The doctor's probe job: a worker looks around where trials will run."""

import fcntl
import os
import time

import pytest
from click.testing import CliRunner

from harness.cli import doctor, probe
from harness.cli.main import main
from harness.errors import UsageError


def topics(findings):
    return {finding.topic: finding for finding in findings}


def test_a_worker_here_finds_what_this_process_finds(tmp_path):
    found = topics(probe.probe("local", {}, tmp_path))
    assert set(found) == {*topics(doctor.look_around(tmp_path)), "locks", "clock"}
    assert found["locks"].level == found["clock"].level == "ok"
    assert all(finding.text.startswith(f"on {os.uname().nodename}: ") for finding in found.values())
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.slurm
def test_a_job_on_slurm_finds_the_submitters_lock(slurm, tmp_path_factory):
    found = topics(probe.probe("slurm", {"time_min": "5", "mem_gb": "0.5"}, tmp_path_factory.mktemp("probe")))
    assert "submitting process holds is seen" in found["locks"].text, found
    assert not [finding for finding in found.values() if finding.level == "error"]


def test_a_lock_that_does_not_hold_elsewhere_is_an_error(tmp_path):
    (tmp_path / "held").touch()
    assert probe._locked(tmp_path / "held", "node1").level == "error"
    with (tmp_path / "held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert probe._locked(tmp_path / "held", "node1").level == "ok"


@pytest.mark.parametrize(("skew", "level"), [(0, "ok"), (60, "note"), (-60, "note")])
def test_a_clock_that_differs_is_said(skew, level, tmp_path, monkeypatch):
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew)
    finding = probe._clock(tmp_path)
    assert finding.level == level
    assert skew == 0 or f"{skew:+d} s" in finding.text


def test_a_job_that_ends_without_an_answer_says_what_it_said(tmp_path):
    [finding] = probe._answers(tmp_path, ["sh", "-c", "echo no such partition >&2; exit 1"])
    assert (finding.level, "no such partition" in finding.text) == ("error", True)


def test_an_unknown_runner_or_option_is_the_commands_fault(tmp_path):
    for runner, options in (("slurn", {}), ("local", {"worker": "2"})):
        with pytest.raises(UsageError, match="did you mean"):
            probe.probe(runner, options, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_options_without_a_runner_are_refused(tmp_path):
    done = CliRunner().invoke(main, ["--root", str(tmp_path), "doctor", "--runner-option", "time_min=5"])
    assert (done.exit_code, "add --runner" in done.stderr) == (2, True)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert "has no locks (Operation not supported)" in doctor._locks(tmp_path).text
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "does not keep its locks" in doctor._locks(tmp_path).text
