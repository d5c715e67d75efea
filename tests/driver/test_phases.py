"""The three phases with a stand-in for trials: what runs, what is reused, what is refused, what is said."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from harness.driver.experiment import ModelInfo
from harness.driver.phases import duty, run_phase
from harness.driver.resolve import refuse_impossible
from harness.driver.trials import base_proposals
from harness.errors import HarnessError, SpecError, StorageError, UsageError
from harness.files import append_line, read_lines
from harness.models.facts import ModelFacts
from harness.records.results import find_result, write_result
from harness.records.study_trials import read_members
from harness.records.trial import ModelRef, TaskRef, TrialStatus
from tests.driver import standin


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """The file in which stand-in trials say that they ran; returns a function that counts them by key."""
    path = tmp_path / "ran"
    monkeypatch.setenv("STANDIN_RAN", str(path))
    monkeypatch.setenv("PYTHONPATH", str(standin.REPOSITORY))

    def keys():
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    yield keys
    standin.dismiss(tmp_path)


def whole(spec, site):
    return [standin.run(name, spec, site) for name in ("base", "search", "confirm")]


@pytest.mark.parametrize(("runner", "options"), [("inline", {}), ("local", {"workers": "2", "pack": "2"})])
def test_a_study_runs_every_trial_once_and_a_second_time_nothing(tmp_path, runs, runner, options):
    spec, site = standin.study(), standin.site(tmp_path, runner, options=options)
    base, search, confirm = whole(spec, site)
    # Two tasks x two splits; two tasks x two families x three trials; two tasks x one finalist x two seeds.
    assert (base.trials, search.trials, confirm.trials) == (4, 12, 4)
    assert {s.exit_code for s in (base, search, confirm)} == {0}
    members = read_members(site.paths, spec.name)
    assert len(members) == 4 + 12 + 4
    ran = runs()
    assert sorted(ran) == sorted({member.key for member in members})
    assert [s.ran for s in whole(spec, site)] == [0, 0, 0]
    assert runs() == ran
    assert read_members(site.paths, spec.name) == members
    assert all(site.paths.study(spec.name).done(name).exists() for name in ("base", "search", "confirm"))


def test_only_base_and_confirm_open_the_test_split_and_finalists_share_fresh_seeds(tmp_path):
    spec, site = standin.study(confirm={"finalists": 2, "seeds": 3}), standin.site(tmp_path)
    whole(spec, site)
    configs = {m: find_result(site.paths, m.key).config for m in _hashable(read_members(site.paths, spec.name))}
    splits = {(m.role, config.evaluation.split) for m, config in configs.items()}
    assert splits == {("base", "validation"), ("base", "test"), ("search", "validation"), ("confirm", "test")}
    seeds = {}
    for member, config in configs.items():
        if member.role == "confirm":
            seeds.setdefault((member.task, member.family), []).append(config.seed)
    assert len(seeds) == 4
    assert len({tuple(sorted(values)) for values in seeds.values()}) == 1
    searched = {config.seed for m, config in configs.items() if m.role == "search"}
    assert len(searched) == 1
    assert not searched & set(next(iter(seeds.values())))


def test_finalists_are_the_best_on_validation(tmp_path):
    families = {
        "far": {"method": "none", "params": {"learning_rate": 0.05}},
        "near": {"method": "none", "params": {"learning_rate": 0.002}},
    }
    spec, site = standin.study(families=families), standin.site(tmp_path)
    whole(spec, site)
    confirmed = {m.family for m in read_members(site.paths, spec.name) if m.role == "confirm"}
    assert confirmed == {"near"}


def test_every_family_gets_the_same_number_of_trials_its_first_being_the_default(tmp_path):
    spec, site = standin.study(search={"sampler": "tpe"}), standin.site(tmp_path)
    standin.run("search", spec, site)
    numbers, first = {}, set()
    for member in read_members(site.paths, spec.name):
        numbers.setdefault((member.task, member.family), []).append(member.number)
        if member.number == 0:
            first.add(member.params["learning_rate"])
    assert list(numbers.values()) == [[0, 1, 2]] * 4
    assert first == {1e-4}


def test_another_study_reuses_records_and_says_so(tmp_path, runs):
    site = standin.site(tmp_path)
    standin.run("search", standin.study(), site)
    before = len(runs())
    summary = standin.run("search", standin.study(name="second"), site)
    assert (summary.ran, summary.reused, summary.seconds) == (0, 12, 0)
    assert len(runs()) == before
    assert all(member.reused for member in read_members(site.paths, "second"))


def test_a_damaged_record_runs_again(tmp_path, runs):
    spec, site = standin.study(), standin.site(tmp_path)
    standin.run("search", spec, site)
    damaged = read_members(site.paths, spec.name)[3].key
    path = site.paths.record(damaged)
    cut_short = path.read_text()[:40]
    path.write_text(cut_short)
    before = len(runs())
    assert standin.run("search", spec, site).ran == 1
    assert runs()[before:] == [damaged]
    assert find_result(site.paths, damaged).status == TrialStatus.COMPLETE
    assert [path.read_text() for path in site.paths.quarantined()] == [cut_short]


def test_refresh_runs_what_another_version_recorded_and_nothing_else(tmp_path, runs):
    spec, site = standin.study(), standin.site(tmp_path)
    standin.run("search", spec, site)
    old = read_members(site.paths, spec.name)[0].key
    result = find_result(site.paths, old)
    write_result(site.paths, replace(result, provenance=replace(result.provenance, harness_version="0.0.9")))
    assert standin.run("search", spec, site).ran == 0
    before = len(runs())
    standin.run("search", spec, replace(site, refresh=True))
    assert runs()[before:] == [old]


def test_a_record_of_a_later_version_stops_the_step_and_stays(tmp_path, runs):
    """Where two colleagues with different versions share a results folder."""
    spec, site = standin.study(), standin.site(tmp_path)
    standin.run("base", spec, site)
    path = site.paths.record(read_members(site.paths, spec.name)[0].key)
    later = path.read_text().replace('"schema_version":2', '"schema_version":3')
    path.write_text(later)
    before = len(runs())
    with pytest.raises(StorageError, match=r"has 3: update harness to read it$"):
        standin.run("base", spec, site)
    assert (path.read_text(), len(runs())) == (later, before)
    assert site.paths.quarantined() == []


def test_failures_count_and_a_cell_without_any_score_gives_exit_code_4(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_TROUBLE", "diverge")
    families = {
        "bad": {"method": "none", "params": {"learning_rate": {"low": 0.001, "high": 0.1}}},
        "good": {"method": "none", "params": {"learning_rate": 0.0001}},
    }
    spec, site = standin.study(families=families, tasks=["one"]), standin.site(tmp_path)
    search = standin.run("search", spec, site)
    assert search.failed == 3
    assert search.without_score == ("model/one/bad",)
    assert search.exit_code == 4
    assert "model/one/bad" in search.text()
    assert "used 1 of 3 trials" in search.text()
    assert standin.run("confirm", spec, site).exit_code == 0


@pytest.mark.parametrize("runner", ["inline", "local"])
@pytest.mark.parametrize(("trouble", "error"), [("spec", SpecError), ("storage", StorageError)])
def test_errors_that_are_not_a_trials_own_stop_the_study_and_leave_no_record(
    tmp_path, monkeypatch, runner, trouble, error
):
    spec, site = standin.study(), standin.site(tmp_path, runner)
    monkeypatch.setenv("STANDIN_TROUBLE", trouble)
    with pytest.raises(error, match="as the test asked"):
        standin.run("search", spec, site)
    assert not list(site.paths.trials.glob("*/*/record.json"))
    monkeypatch.delenv("STANDIN_TROUBLE")
    assert standin.run("search", spec, site).failed == 0


def test_an_error_in_the_code_of_a_trial_is_its_record(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_TROUBLE", "bug")
    monkeypatch.setenv("STANDIN_SECONDS", "0.2")
    spec, site = standin.study(tasks=["one"], budget={"trials": 1, "steps": 9}), standin.site(tmp_path, "local")
    assert standin.run("search", spec, site).failed == 2
    record = find_result(site.paths, read_members(site.paths, spec.name)[0].key)
    assert record.status == TrialStatus.CRASHED
    assert record.reason == "RuntimeError: as the test asked"
    assert record.cost.total_s >= 0.2


def test_the_last_lines_of_the_confirmation_are_its_verdicts(tmp_path):
    spec, site = standin.study(tasks=["one"]), standin.site(tmp_path)
    summaries = [
        run_phase(
            role, spec, site, standin.experiment, lambda: [f"what {len(read_members(site.paths, 'standin'))} say"]
        )
        for role in ("base", "search", "confirm")
    ]
    assert [summary.verdicts for summary in summaries] == [(), (), ("what 10 say",)]  # 2 base, 6 searched, 2 confirmed
    assert summaries[2].text().splitlines()[-1] == "what 10 say"


def test_confirm_before_search_is_refused(tmp_path):
    spec, site = standin.study(), standin.site(tmp_path)
    with pytest.raises(SpecError, match="harness search standin"):
        standin.run("confirm", spec, site)


def test_the_folder_of_another_study_is_refused_and_left_alone(tmp_path):
    site = standin.site(tmp_path)
    standin.run("base", standin.study(), site)
    path = site.paths.study("standin").spec
    before = path.read_text()
    with pytest.raises(SpecError, match="another study"):
        standin.run("base", standin.study(seed=7), site)
    assert path.read_text() == before


def test_a_task_that_changed_since_the_study_began_is_refused(tmp_path):
    spec, site = standin.study(), standin.site(tmp_path)
    standin.run("search", spec, site)
    tasks = standin.experiment(spec, site).tasks
    changed = tuple(replace(task, ref=TaskRef(task.ref.name, "changed")) for task in tasks)
    with pytest.raises(SpecError, match="changed"):
        standin.run("search", spec, site, tasks=changed)


@pytest.mark.parametrize(
    ("runner", "options", "expected"),
    [
        ("cloud", {}, "runner must be one of"),
        ("local", {"partition": "gpu"}, "option of runner local must be"),
        ("slurm", {"partion": "gpu"}, "did you mean 'partition'"),
        ("local", {"workers": "many"}, "must be a whole number"),
        ("local", {"outside": "NCCL|["}, "must be a regular expression"),
        ("local", {"workers": "0"}, "at least 1"),
        ("local", {"pack": "0"}, "at least 1"),
        ("local", {"time_limit_min": "0"}, "above 0"),
        ("local", {"checkpoint_min": "-1"}, "at least 0"),
    ],
)
def test_wrong_runners_and_options_are_refused_before_anything_is_written(tmp_path, runner, options, expected):
    with pytest.raises(UsageError, match=expected):
        standin.run("base", standin.study(), standin.site(tmp_path, runner, options=options))
    assert not (tmp_path / "results").exists()


def test_a_family_that_cannot_work_is_refused_with_its_reason(tmp_path):
    spec = standin.study(families={"quantised": {"method": "qlora"}})
    odd = ModelInfo(ModelRef("model", "r"), ModelFacts(model_type="llama", linear_widths=(100,), parameters=1000))
    with pytest.raises(SpecError, match=r"family quantised .* model and one, but .*64"):
        refuse_impossible(standin.experiment(spec, standin.site(tmp_path), models=(odd,)))


def test_a_worker_that_cannot_start_ends_the_phase_with_its_log(tmp_path):
    site = standin.site(tmp_path, "local", work="no_such_module:function")
    with pytest.raises(HarnessError, match="worker must be able to start") as caught:
        run_with_broken_start(site)
    assert "jobs" in str(caught.value)


def run_with_broken_start(site):
    """A worker whose process ends at once, as with a broken installation on a node."""
    from unittest import mock

    with mock.patch("harness.runners.local.serve", _fail_at_once):
        return standin.run("base", standin.study(), site)


def _fail_at_once(duty):
    raise SystemExit(1)


def test_workers_are_expected_while_trials_will_come_and_stay_until_the_study_is_confirmed(tmp_path, monkeypatch):
    from harness.runners.base import make_runner

    told = []

    def watched(*opened):
        runner = make_runner(*opened)
        runner.expect = told.append
        runner.leave = lambda: told.append("leave")
        runner.close = lambda: told.append("close")
        return runner

    monkeypatch.setattr("harness.driver.phases.make_runner", watched)
    spec, site = standin.study(), standin.site(tmp_path)
    for phase in ("base", "search", "search", "base", "confirm", "confirm"):
        standin.run(phase, spec, site)
    # Two families on two tasks; what was complete once has its records.
    assert told == [4, "leave", 4, "leave", 0, "leave", 0, "leave", 4, "close", 0, "close"]


def test_a_line_cut_short_by_a_kill_is_cut_off_and_the_next_is_whole(tmp_path):
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    path.write_bytes(path.read_bytes() + b'{"a": 2')
    assert read_lines(path) == [{"a": 1}]
    append_line(path, {"a": 3})
    assert read_lines(path) == [{"a": 1}, {"a": 3}]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    site = standin.site(tmp_path)
    path = site.paths.study("standin").members
    path.parent.mkdir(parents=True)
    path.write_text('{"key": 1\n{}\n')
    with pytest.raises(StorageError, match=r"members\.jsonl"):
        read_members(site.paths, "standin")


def test_the_study_file_is_kept_beside_its_fingerprint(tmp_path):
    spec, site = standin.study(), standin.site(tmp_path)
    standin.run("base", spec, site)
    kept = json.loads(site.paths.study(spec.name).spec.read_text())
    assert kept["fingerprint"] == spec.fingerprint
    assert kept["study"]["families"].keys() == {"a", "b"}


def test_halving_runs_rungs_as_jobs_and_keeps_within_the_budget(tmp_path):
    spec = standin.study(
        budget={"trials": 3, "steps": 9}, search={"sampler": "random", "scheduler": "successive_halving"}
    )
    site = standin.site(tmp_path)
    assert standin.run("search", spec, site).exit_code == 0
    members = read_members(site.paths, spec.name)
    rungs = {}
    for member in members:
        rungs.setdefault((member.task, member.family), []).append((member.number, member.fidelity))
    for jobs in rungs.values():
        share = {0.111111: 1 / 9, 0.333333: 2 / 9, 1.0: 2 / 3}
        assert sum(share[fidelity] for _, fidelity in jobs) == pytest.approx(3)
        finished = [number for number, fidelity in jobs if fidelity == 1.0]
        assert finished
        assert all((number, 0.333333) in jobs for number in finished)


def test_the_driver_loads_no_torch(tmp_path):
    code = (
        "import sys, pathlib\nfrom tests.driver import standin\n\n"
        "spec = standin.study()\nsite = standin.site(pathlib.Path(sys.argv[1]))\n"
        "standin.run('search', spec, site)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=standin.REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def _hashable(members):
    return [replace(member, params=tuple(member.params.items())) for member in members]


@pytest.mark.parametrize(
    ("visible", "expected"), [("", ()), ("-1", ()), ("0,1", ("0", "1")), ("GPU-8f2a", ("GPU-8f2a",))]
)
def test_gpus_are_those_that_the_process_may_use(monkeypatch, visible, expected):
    from harness.runners.base import parse_options
    from harness.workers.devices import gpus

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus() == expected
    assert standin.Site().device_type == ("cuda" if expected else "cpu")
    if expected:
        assert parse_options("local", {}).workers == len(expected)


def test_a_pack_whose_worker_died_unseen_is_charged_until_its_last_sign_of_life(tmp_path):
    """The driver looks again when both have long been dead: the time between is nobody's."""
    from harness.runners.base import make_runner, parse_options
    from harness.workers.worker import Duty, write_item

    spec, site = standin.study(), standin.site(tmp_path, "local")
    options = parse_options("local", {})
    config = next(iter(base_proposals(standin.experiment(spec, site)))).config
    files = site.paths.study(spec.name)
    told = Duty(files.queue, site.work, duty(spec, site).workspace)
    write_item(told.queue / "claimed" / "77", "pack.json", [config])
    log = files.logs / "1" / "77_0_log.err"
    log.parent.mkdir(parents=True)
    log.touch()
    claimed = (told.queue / "claimed" / "77" / "pack.json").stat().st_ctime
    os.utime(log, (claimed + 40, claimed + 40))
    [ended] = make_runner("local", options, files, told).poll()
    assert ended.configs == (config,)
    assert ended.loss.seconds == pytest.approx(40)


@pytest.mark.parametrize(("workers", "packs"), [("1", 2), ("4", 5), ("8", 10)])
def test_a_quarter_more_packs_than_workers_are_under_way_so_that_none_waits_for_the_driver(tmp_path, workers, packs):
    from harness.runners.base import make_runner, parse_options

    spec, site = standin.study(), standin.site(tmp_path, "local")
    options = parse_options("local", {"workers": workers})
    runner = make_runner("local", options, site.paths.study(spec.name), duty(spec, site))
    assert (runner.workers, runner.slots) == (int(workers), packs)


def test_a_process_id_that_comes_back_is_another_worker(tmp_path):
    from harness.runners.base import recorded_jobs

    path, job = tmp_path / "jobs.jsonl", {"runner": "local", "job": "7", "host": "h", "birth": "1", "gpu": "", "at": ""}
    append_line(path, {"event": "started", "job": job})
    append_line(path, {"event": "ended", "job": "7"})
    assert recorded_jobs(path) == []
    append_line(path, {"event": "started", "job": job | {"birth": "2"}})
    assert [worker.birth for worker in recorded_jobs(path)] == ["2"]


def test_what_rungs_left_behind_is_removed_after_the_search(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_CHECKPOINT", "1")
    halving = {"sampler": "random", "scheduler": "successive_halving"}
    spec, site = standin.study(budget={"trials": 2, "steps": 9}, search=halving), standin.site(tmp_path)
    standin.run("search", spec, site)
    assert not list(site.paths.trials.rglob("checkpoint"))
    assert not list(site.paths.trials.rglob("rungs"))
    folders = {path.name for path in site.paths.trials.glob("*/*")}
    assert folders == {member.key for member in read_members(site.paths, spec.name)}


def test_jobs_do_not_ask_a_hub_that_may_be_down_unless_told_to(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert duty(standin.study(), standin.site(tmp_path)).environment == {"HF_HUB_OFFLINE": "1"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert duty(standin.study(), standin.site(tmp_path)).environment == {"HF_HUB_OFFLINE": "0"}
