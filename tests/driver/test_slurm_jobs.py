"""What a Slurm job is told, with a made-up `sbatch` at the boundary; tests/cluster has a real one."""

import math
import os
import re

import pytest

from harness.errors import UsageError
from harness.files import append_line, read_lines
from harness.records.causes import Cause
from harness.runners import slurm
from harness.runners._queue import QueueRunner
from harness.runners.base import Foreseen, Loss, WorkerJob, backend, parse_options
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
    (folder / "sinfo").write_text("#!/bin/sh\nexit 1\n")  # not that of a Slurm which may run here
    (folder / "sinfo").chmod(0o755)
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


@pytest.mark.parametrize(
    ("state", "left", "log", "cause"),
    [
        ("PREEMPTED", "cancelled", "", Cause.PREEMPTED),  # with a grace time, Slurm says so by SIGTERM first
        ("NODE_FAIL", "", "", Cause.NODE_FAILED),
        ("CANCELLED", "", "", Cause.CANCELLED),
        ("TIMEOUT", "", "", Cause.JOB_TIME),
        ("FAILED", "job_time", "", Cause.JOB_TIME),  # it left at SIGUSR2, before the limit
        ("FAILED", "", "Fatal Python error: Segmentation fault", Cause.DIED),
        ("FAILED", "", "srun: error: host: task 0: Killed", Cause.KILLED),
        ("FAILED", "", "Traceback (most recent call last): of a trial that the worker survived", Cause.KILLED),
        ("OUT_OF_MEMORY", "", "", Cause.HOST_MEMORY),
        (
            "FAILED",
            "",
            "slurmstepd-n1: error: StepId=3.0 exceeded memory limit (9 > 3), being killed",
            Cause.HOST_MEMORY,
        ),
        ("FAILED", "", "slurmstepd: error: Detected 1 oom_kill event in StepId=3.0.", Cause.HOST_MEMORY),
        ("FAILED", "", "Traceback (most recent call last): NCCL error", Cause.SITE),
    ],
)
def test_whose_fault_the_end_of_a_job_is(tmp_path, monkeypatch, state, left, log, cause):
    settings = parse_options("slurm", {"outside": "NCCL|Xid"})
    monkeypatch.setattr("harness.runners.slurm.slurm_states", lambda jobs: {"7": state})
    slurm, duty = backend("slurm")(tmp_path / "jobs" / "now", settings), Duty(tmp_path / "queue", "", None)
    append_line(tmp_path / "jobs.jsonl", {"event": "started", "job": {"job": "7", "runner": "slurm"}})
    mine = duty.queue / "claimed" / "7"
    mine.mkdir(parents=True)
    (tmp_path / "jobs" / "before").mkdir(parents=True)
    (tmp_path / "jobs" / "before" / "7_0_log.err").write_text(log)
    if left:
        (mine / ".left").write_text(left)
    monkeypatch.setattr(QueueRunner, "_take_over", lambda self: None)
    [loss] = QueueRunner(tmp_path / "jobs.jsonl", duty, slurm)._dead_workers().values()
    assert loss.cause == cause
    assert f"its Slurm job 7 ended as {state}" in loss.reason
    assert (log != "" and log in loss.reason) is (cause in (Cause.DIED, Cause.SITE))


def test_a_job_that_was_too_short_makes_the_next_one_longer(tmp_path, paths, sbatch):
    settings = parse_options("slurm", {"time_min": "30", "time_max_min": "100"})
    slurm, duty = backend("slurm")(tmp_path / "jobs", settings), Duty(tmp_path / "queue", "", Workspace(paths))
    asked = []
    for _ in range(4):
        slurm.start(duty, [])
        newest = max((tmp_path / "jobs").glob("*.sh"), key=lambda path: path.stat().st_mtime_ns)
        asked += [line for line in newest.read_text().splitlines() if "--time=" in line]
        slurm.lengthen()
    assert asked == [f"#SBATCH --time={minutes}" for minutes in (30, 60, 100, 100)]


def test_a_job_with_too_little_memory_makes_the_next_one_larger(tmp_path, paths, sbatch):
    settings = parse_options("slurm", {"mem_gb": "4", "mem_max_gb": "10"})
    slurm, duty = backend("slurm")(tmp_path / "jobs", settings), Duty(tmp_path / "queue", "", Workspace(paths))
    asked = []
    for _ in range(4):
        slurm.start(duty, [])
        newest = max((tmp_path / "jobs").glob("*.sh"), key=lambda path: path.stat().st_mtime_ns)
        asked += [line for line in newest.read_text().splitlines() if "--mem=" in line]
        slurm.enlarge()
    assert asked == [f"#SBATCH --mem={gb * 1024}MB" for gb in (4, 8, 10, 10)]
    unknown = backend("slurm")(tmp_path / "others", parse_options("slurm", {}))
    unknown.enlarge()
    unknown.start(duty, [])
    assert "--mem" not in next((tmp_path / "others").glob("*.sh")).read_text()


def asked_for(folder):
    """Minutes and megabytes of the newest job; None where it does not say."""
    newest = max(folder.glob("*.sh"), key=lambda path: path.stat().st_mtime_ns).read_text()
    found = [re.search(pattern, newest) for pattern in (r"--time=(\d+)\n", r"--mem=(\d+)MB\n")]
    return tuple(int(match[1]) if match else None for match in found)


@pytest.mark.parametrize(
    ("options", "said", "asked", "then"),
    [  # three hours are nine tenths; 3.4 GiB are rounded up
        ({}, "main*|infinite|64000", (200, 3584), (400, 7168)),
        ({}, "main*|2:00:00|64000\nlong|infinite|1", (120, 3584), (120, 7168)),
        # a partition that does not say what its nodes have
        ({"partition": "long"}, "main*|2:00:00|64000\nlong|1-00:00:00|1", (200, None), (400, None)),
        ({}, "main*|infinite|2000\nmain*|infinite|3000+", (200, 3000), (400, 3000)),
        ({"time_max_min": "90", "mem_max_gb": "2"}, "main*|infinite|64000", (90, 2048), (90, 2048)),
        ({"time_min": "7"}, "main*|infinite|64000", (7, 3584), (14, 7168)),
        ({"mem_gb": "1"}, "", (200, 1024), (400, 2048)),
        ({"time_min": "7", "mem_gb": "1"}, "", (7, 1024), (14, 2048)),
    ],
)
def test_a_job_asks_for_what_is_foreseen_unless_the_site_says_otherwise(
    tmp_path, paths, sbatch, monkeypatch, options, said, asked, then
):
    monkeypatch.setattr("harness.runners.slurm._lines", lambda command: said.splitlines())
    slurm, duty = backend("slurm")(tmp_path / "jobs", parse_options("slurm", options)), Duty(tmp_path, "", None)
    calls = []
    foreseen = Foreseen(memory_bytes=3.4 * 2**30, pack_s=60.0, worker_s=3 * 3600)
    slurm.foresee(lambda: calls.append(True) or foreseen)
    assert calls == []  # no job, no question
    for _ in range(2):
        slurm.start(duty, [])
        assert asked_for(tmp_path / "jobs") == asked
    assert len(calls) == ("time_min" not in options or "mem_gb" not in options)
    slurm.lengthen()
    slurm.enlarge()
    slurm.start(duty, [])
    assert asked_for(tmp_path / "jobs") == then


def test_a_job_of_which_little_is_expected_lasts_half_an_hour(tmp_path, sbatch):
    slurm = backend("slurm")(tmp_path / "jobs", parse_options("slurm", {"partition": "nowhere"}))
    slurm.foresee(lambda: Foreseen(memory_bytes=None, pack_s=2.0, worker_s=9.0))
    slurm.start(Duty(tmp_path, "", None), [])
    assert asked_for(tmp_path / "jobs") == (30, None)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", math.inf), ("30:00", 30), ("4:00:00", 240), ("2-00:30:00", 2910), ("1-00:00:00", 1440), ("45", 0)],
)
def test_time_limits_are_read_in_slurms_words(limit, minutes):
    assert slurm._minutes(limit) == minutes


@pytest.mark.parametrize(("state", "raised"), [("OUT_OF_MEMORY", True), ("TIMEOUT", False)])
def test_only_memory_asks_for_more_memory(tmp_path, monkeypatch, state, raised):
    monkeypatch.setattr("harness.runners.slurm.slurm_states", lambda jobs: {"7": state})
    slurm, duty = backend("slurm")(tmp_path / "jobs", parse_options("slurm", {})), Duty(tmp_path / "queue", "", None)
    append_line(tmp_path / "jobs.jsonl", {"event": "started", "job": {"job": "7", "runner": "slurm"}})
    (duty.queue / "claimed" / "7").mkdir(parents=True)
    (duty.queue / "claimed" / "7" / "pack.json").write_text("[]")
    monkeypatch.setattr(QueueRunner, "_take_over", lambda self: None)
    asked = []
    monkeypatch.setattr(slurm, "enlarge", lambda: asked.append(True))
    QueueRunner(tmp_path / "jobs.jsonl", duty, slurm)._dead_workers()
    assert bool(asked) is raised


def test_any_flag_of_sbatch_can_be_given_but_those_that_have_an_option(tmp_path, paths, sbatch, monkeypatch):
    monkeypatch.setenv("SBATCH_RESERVATION", "another")  # counts more for sbatch than its script
    settings = parse_options("slurm", {"sbatch": "--reservation='my class' --exclusive --mail-type=END"})
    duty = Duty(tmp_path, "harness.trial.group:work", Workspace(paths))
    backend("slurm")(tmp_path / "jobs", settings).start(duty, [])
    script = next((tmp_path / "jobs").glob("*.sh")).read_text()
    assert "#SBATCH --reservation='my class'" in script
    assert "#SBATCH --exclusive\n" in script
    assert "#SBATCH --mail-type=END" in script
    assert "#SBATCH --no-requeue" in script
    assert "SBATCH_RESERVATION" not in (tmp_path / "environment").read_text()
    for wrong in ("--time=3", "-p gpu", "reservation=x", "--no-requeue", "'--a"):
        with pytest.raises(UsageError, match="runner option sbatch must be a list of flags"):
            parse_options("slurm", {"sbatch": wrong})


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


@pytest.mark.parametrize(
    ("cause", "ended", "avoided"),
    [
        (Cause.KILLED, 0, ["bad"]),
        (Cause.NODE_FAILED, 0, ["bad"]),
        (Cause.PREEMPTED, 0, []),  # the node did nothing
        (Cause.KILLED, 1, []),  # each worker had ended a pack there
    ],
)
def test_a_node_on_which_three_workers_in_a_row_were_lost_gets_no_more(tmp_path, paths, cause, ended, avoided):
    class Losing(backend("local")):
        lost = ()
        avoided: list[str] = []

        def dead(self, jobs):
            return {job: Loss(cause, "as the test asked") for job in self.lost}

        def start(self, duty, running):
            raise AssertionError("there is no pack")

        def avoid(self, node):
            self.avoided.append(node)
            return True

    Losing.avoided = []
    lines, queue = tmp_path / "jobs.jsonl", tmp_path / "queue"
    losing = Losing(tmp_path / "jobs" / "1", parse_options("local", {}))
    runner = QueueRunner(lines, Duty(queue, "harness.trial.group:work", Workspace(paths), job_id_variable="X"), losing)
    for number in range(3):
        for node in ("bad", "good"):
            job = f"{node}-{number}"
            runner.jobs[job] = WorkerJob(job=job)
            mine = runner.folders.claimed / job
            mine.mkdir()
            packs = ended if node == "bad" else number % 2
            (mine / ".node").write_text("\n".join([node, *["pack"] * packs]) + "\n")
            losing.lost = (job,)
            runner._looked_at = float("-inf")
            runner.poll()
            assert not mine.exists()
    assert losing.avoided == avoided
    assert [line["node"] for line in read_lines(lines) if line["event"] == "excluded"] == avoided


def test_what_is_avoided_is_excluded_from_the_next_job_until_nothing_else_is_left(tmp_path, paths, sbatch):
    settings = parse_options("slurm", {"exclude": "old"})
    slurm = backend("slurm")(tmp_path / "jobs", settings)
    assert slurm.avoid("n7")
    duty = Duty(tmp_path, "harness.trial.group:work", Workspace(paths))
    slurm.start(duty, [])
    assert "#SBATCH --exclude=old,n7\n" in next((tmp_path / "jobs").glob("*.sh")).read_text()
    refusing = tmp_path / "bin" / "sbatch"
    refusing.write_text('#!/bin/sh\ngrep -q exclude=old,n7 "$1" && exit 1\necho Submitted batch job 8\n')
    assert slurm.start(duty, []).job == "8"
