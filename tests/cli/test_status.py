"""How far a study is, from its files: counts, spend, time left, failures and nodes, worked out by hand."""

import fcntl
import json
import random
import threading

import pytest
from click.testing import CliRunner

from harness.cli.main import main
from harness.cli.status import looks, sum_interval
from harness.errors import SpecError
from harness.files import append_line
from harness.records.bill import Halt, Share, write_halt
from harness.records.codec import to_json
from harness.records.lost_work import LostTrial
from harness.records.paths import Paths
from harness.records.results import result_text, write_result
from harness.records.study_trials import Member
from harness.records.trial import (
    CostRecord,
    ModelRef,
    Pipeline,
    Provenance,
    Stage,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
)
from harness.workers.worker import Folders, write_item


class Made:
    """A study as its files say it is."""

    def __init__(self, folder):
        self.paths = Paths(folder / "results", folder / "reports")
        self.files = self.paths.study("made")
        self.files.folder.mkdir(parents=True)
        self.count = 0
        self.say(self.files.spec, {"study": {"budget": {"trials": 9, "gpu_hours": 2.0}, "prices": {"currency": "EUR"}}})

    def say(self, path, content):
        path.write_text(json.dumps(content))

    def plan(self, workers=2, **trials):
        steps = [{"step": phase, "trials": count, "seconds": 10.0 * count} for phase, count in trials.items()]
        self.say(self.files.plan, {"steps": steps, "workers": workers})

    def ask(self, role="search", family="lora", reused=False):
        config = TrialConfig(
            pipeline=Pipeline(ModelRef("base", "r"), (Stage(method="lora"),)),
            task=TaskRef("task", "f"), steps=10, seed=self.count,
        )  # fmt: skip
        member = Member(
            key=config.key, role=role, family=family, task="task", base_model="base", repetition=0, number=self.count,
            params={}, reused=reused, asked_at="2026-11-28T10:00:00+00:00",
        )  # fmt: skip
        append_line(self.files.members, to_json(member))
        self.count += 1
        return config

    def record(self, config, seconds=10.0, status="complete", reason="", host="n1", money=None, gpu_s=0.0):
        cost = CostRecord(seconds={"load": 1.0, "train": seconds - 1.0}, tokens=100, money=money, gpu_s=gpu_s)
        provenance = Provenance(hostname=host, study="made")
        result = TrialResult(config=config, status=TrialStatus(status), reason=reason, cost=cost, provenance=provenance)
        write_result(self.paths, result)
        return result

    @property
    def status(self):
        [status] = next(looks(self.paths, "made", watch=False))
        return status


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def test_trials_are_done_failed_running_waiting_or_not_asked_for(made):
    made.plan(search=12, confirm=4)
    for _ in range(3):
        made.record(made.ask())
    made.record(made.ask(), status="crashed", reason="x")
    running, waiting = made.ask(), made.ask()
    folders = Folders(made.files.queue)
    folders.make()
    (folders.claimed / "7").mkdir()
    write_item(folders.claimed / "7", "a.json", [running])
    write_item(folders.todo, "b.json", [waiting])
    status = made.status
    assert (status.done, status.failed, status.running, status.held) == (3, {"crashed": 1}, 2, 1)
    assert "3 done, 1 running, 1 waiting, about 10 not asked for yet, 1 crashed" in status.text()
    assert status.left == 12 + 4 - 6
    made.record(running)  # the worker has not let go of its pack yet
    assert (made.status.held, made.status.done) == (0, 4)


def test_spend_is_against_the_budget_and_counts_failures_and_lost_attempts_but_nothing_reused(made):
    made.record(made.ask(), 3600.0, money=3.0)
    failed = made.ask()
    made.record(failed, 1800.0, status="diverged", money=1.5)
    made.record(made.ask(reused=True), 9999.0, money=9.0)
    append_line(made.files.jobs, to_json(LostTrial(key=failed.key, seconds=600.0)))
    status = made.status
    assert status.seconds == 3600 + 1800 + 600
    assert status.hours == pytest.approx(6000 / 3600)
    assert status.money == pytest.approx(4.5 + 600 * 4.5 / 5400)
    assert (status.budget, status.lost) == ({"gpu_hours": 2.0}, {"unseen": 1})
    assert "spent: 1.67 of 2 hours and 5.00 EUR" in status.text()


def test_failures_stand_with_their_reasons_the_most_frequent_first(made):
    for reason in ("a", "b\nb", "b\nb"):
        made.record(made.ask(), status="crashed", reason=reason)
    assert [(one.trials, one.status, one.reason) for one in made.status.failures] == [
        (2, "crashed", "b b"), (1, "crashed", "a"),
    ]  # fmt: skip


def test_a_node_on_which_all_kinds_take_twice_as_long_is_named(made):
    for family, seconds in (("lora", 11.0), ("full", 101.0)):
        for _ in range(5):
            made.record(made.ask(family=family), seconds, host="n1")
        for _ in range(2):
            made.record(made.ask(family=family), 2 * (seconds - 1) + 1, host="n2")
        made.record(made.ask(family=family), 9 * seconds, host="n3")  # two trials say nothing of a node
    [slow] = made.status.slow_nodes
    assert (slow.host, slow.trials, slow.times) == ("n2", 4, pytest.approx(2.0))
    assert "slow: n2, 2.0 times as long over 4 trials" in made.status.text()


def test_the_time_left_is_that_of_the_plan_until_trials_have_ended(made):
    made.plan(search=6, confirm=2, workers=2)
    left = made.status.time_left
    # Eight trials of ten seconds, two at a time, and a plan may be off by a factor of three.
    assert (left.low_s, left.high_s) == (pytest.approx(40 / 3), pytest.approx(40 * 3))
    assert left.basis == "search and confirm from the plan, a factor of 3 either way; 2 at a time"
    for _ in range(4):
        made.record(made.ask(), 20.0)
    left = made.status.time_left  # trials that all took as long leave nothing unsure: two more, and the last one alone
    assert (left.low_s, left.high_s) == (
        pytest.approx(40 / 2 + 20 / 3 / 2),
        pytest.approx(40 / 2 + 20 * 3 / 2 + 20 / 2),
    )
    assert left.basis == "90% interval from 4 trials, confirm from the plan, a factor of 3 either way; 2 at a time"
    for phase in ("search", "confirm"):
        made.files.done(phase).touch()
    assert made.status.time_left is None


@pytest.mark.parametrize("seen", [4, 30])
def test_nine_of_ten_sums_lie_in_their_interval(seen):
    rng, inside = random.Random(3), 0
    for _ in range(2000):
        low, high = sum_interval([rng.gauss(50, 10) for _ in range(seen)], 12)
        inside += low <= sum(rng.gauss(50, 10) for _ in range(12)) <= high
    assert inside / 2000 == pytest.approx(0.9, abs=0.02)


def test_it_says_who_runs_the_study_and_what_stopped_it(made):
    made.record(made.ask())
    assert made.status.driver is None
    assert made.status.ended
    with made.files.lock.open("w") as lock:
        lock.write("process 7 on n1")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert made.status.driver == "process 7 on n1"
        assert "process 7 on n1 runs it" in made.status.text()
        assert not made.status.ended
    write_halt(
        made.files, Halt(phase="search", text="it has spent it", families={"a": Share(ended=1, planned=2)}, at="")
    )
    assert made.status.text().endswith("  it has spent it")


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-30], lambda raw: raw.replace(b"complete", b"crashedd"), lambda raw: b"\xff"]
)
def test_a_record_that_is_not_believed_is_none(made, damage):
    record = made.paths.record(made.record(made.ask()).config.key)
    assert made.status.done == 1
    record.write_bytes(damage(record.read_bytes()))
    assert (made.status.done, made.status.running) == (0, 1)


def test_watching_reads_what_has_changed_and_ends_with_the_driver(made, monkeypatch):
    one, two = made.ask(), made.ask()
    made.record(one)
    lock = made.files.lock.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    paused = threading.Event()

    def pause(seconds):
        assert seconds >= 5.0
        if paused.is_set():
            lock.close()
        paused.set()
        made.record(two, status="crashed", reason="x")

    monkeypatch.setattr("harness.cli.status.time.sleep", pause)
    seen = [(row.done, row.failed) for [row] in looks(made.paths, "made", watch=True)]
    assert seen == [(1, {}), (1, {"crashed": 1}), (1, {"crashed": 1})]


def test_people_and_programs_are_told_the_same(made):
    result = made.record(made.ask())
    made.paths.record(result.config.key).write_text(result_text(result))
    root = str(made.paths.results.parent)
    told = json.loads(CliRunner().invoke(main, ["--root", root, "status", "made", "--json"]).stdout)
    assert told == json.loads(json.dumps(to_json(next(looks(made.paths, None, watch=False)))))
    assert CliRunner().invoke(main, ["--root", root, "status"]).stdout == made.status.text() + "\n"
    with pytest.raises(SpecError, match="did you mean 'made'"):
        next(looks(made.paths, "mode", watch=False))
