"""How a driver fills its workers: packs, what it asks for ahead of results, lost packs, and families that give up."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from harness.driver import loop
from harness.driver.display import Display
from harness.driver.loop import Driver, pause_s
from harness.driver.phases import duty
from harness.driver.sources import FixedSource, Proposal, SearchSource
from harness.driver.trials import search_cells
from harness.errors import HarnessError, StorageError
from harness.files import read_lines
from harness.records.causes import Cause
from harness.records.lost_work import lost_seconds, read_lost, read_stops
from harness.records.results import find_result, write_result
from harness.records.study_trials import read_members
from harness.records.trial import CostRecord, Score, TrialResult, TrialStatus
from harness.runners.base import Ended, Loss, Runner, parse_options
from tests.driver import standin

NEAR_AND_FAR = {
    "near": {"method": "lora", "params": {"learning_rate": {"low": 0.0005, "high": 0.002}}},
    "far": {"method": "lora", "params": {"learning_rate": {"low": 0.01, "high": 0.012}, "target": "attention"}},
}
"""The stand-in scores one minus the distance from .001: far trials have .9890 to .9910, near ones .9990 to 1."""


@pytest.fixture(autouse=True)
def packs(tmp_path, monkeypatch):
    """What workers were given; returns a function that lists the packs as tuples of keys."""
    path = tmp_path / "packs"
    monkeypatch.setenv("STANDIN_PACKS", str(path))
    monkeypatch.setenv("PYTHONPATH", str(standin.REPOSITORY))
    yield lambda: [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []
    standin.dismiss(tmp_path)


def question(trials=8, families=None, sampler="random", **changes):
    families = families or {"a": {"method": "lora"}}
    search = {"sampler": sampler} | changes.pop("search", {})
    return standin.study(
        families=families, tasks=["one"], budget={"trials": trials, "steps": 9}, search=search, **changes
    )


@pytest.mark.parametrize(
    ("runner", "options", "expected"),
    [
        ("inline", {}, [8]),
        ("inline", {"pack": "3"}, [3, 3, 2]),
        ("local", {"workers": "2"}, [4, 4]),
        ("local", {"workers": "1"}, [8]),
    ],
)
def test_alike_trials_go_to_workers_in_packs_that_end_together(tmp_path, packs, runner, options, expected):
    standin.run("search", question(), standin.site(tmp_path, runner, options=options))
    assert sorted(map(len, packs()), reverse=True) == expected


def test_finalists_train_together_over_their_seeds_and_base_scores_alone(tmp_path, packs):
    spec = question(families=standin.TOGETHER, confirm={"finalists": 2, "seeds": 5})
    site = standin.site(tmp_path)
    for name in ("base", "search", "confirm"):
        standin.run(name, spec, site)
    found = [find_result(site.paths, key[0]).config.evaluation.split for key in packs()]
    sizes = [len(pack) for pack in packs()]
    assert sizes[:2] == [1, 1]
    assert [size for size, split in zip(sizes, found, strict=True) if split == "test"] == [1, 5, 5]


def test_a_sampler_that_learns_is_not_asked_for_a_whole_budget_at_once(tmp_path, packs):
    standin.run("search", question(trials=13, sampler="tpe"), standin.site(tmp_path))
    # Four that depend on no result; then half of those seen, which are 4, 6, 9: two, three, four.
    assert [len(pack) for pack in packs()] == [4, 2, 3, 4]


def test_promotions_of_a_rung_train_together(tmp_path, packs):
    spec = question(trials=3, search={"sampler": "random", "scheduler": "successive_halving"})
    site = standin.site(tmp_path)
    standin.run("search", spec, site)
    found = [[find_result(site.paths, key).config.fidelity for key in pack] for pack in packs()]
    assert all(len(set(fidelities)) == 1 for fidelities in found)
    # The budget pays for 27 jobs at a ninth: four rounds of 7. Of these 7 the best two go on together, the two that are
    # left of a bracket of 9 start, the third of the best third goes on, and of those three the best.
    assert [(len(pack), round(1 / pack[0])) for pack in found[:5]] == [(7, 9), (2, 3), (2, 9), (1, 3), (1, 1)]


def test_a_study_cut_short_asks_for_the_same_trials_as_one_that_was_not(tmp_path):
    spec = question(trials=13, sampler="tpe")
    whole, short = standin.site(tmp_path / "whole"), standin.site(tmp_path / "short")
    for site in (whole, short):
        standin.run("search", spec, site)
    path = short.paths.study(spec.name).members
    lines = path.read_text().splitlines(keepends=True)
    for line in (4, 6, 9):  # between packs
        path.write_text("".join(lines[:line]))
        standin.run("search", spec, short)
        assert [m.params for m in read_members(short.paths, spec.name)] == [
            m.params for m in read_members(whole.paths, spec.name)
        ]


def scored(config, value):
    """A record of one second with this score."""
    score = Score(
        task="one",
        split=config.evaluation.split,
        metric="acc",
        value=value,
        stderr=None,
        n=10,
        higher_is_better=True,
        comparability="same",
    )
    cost = CostRecord(seconds={"train": 1.0})
    return TrialResult(config=config, status=TrialStatus.COMPLETE, scores=(score,), cost=cost)


class Fragile(Runner):
    """Runs packs in this process; a worker dies of every pack that is too large, after as many trials as `before`."""

    workers = slots = 1

    def __init__(self, paths, bearable, seconds, before, cause):
        self.paths, self.bearable, self.seconds, self.before, self.cause = paths, bearable, seconds, before, cause
        self.packs, self._ended = [], []

    def submit(self, configs):
        self.packs.append(len(configs))
        fine = len(configs) <= self.bearable
        loss = None if fine else Loss(self.cause, "as the test asked", self.seconds)
        self._ended.append(Ended(tuple(configs), loss))

    def poll(self):
        ended, self._ended = self._ended, []
        for pack in ended:
            for config in pack.configs[: self.before] if pack.loss else pack.configs:
                write_result(self.paths, scored(config, 0.5))
        return ended

    def under_way(self):
        return [[config.key for config in pack.configs] for pack in self._ended]


class Seen(Display):
    """Keeps what it would show."""

    def __init__(self):
        super().__init__("test", False)
        self.snapshots = []

    def show(self, look, last=False):
        self.snapshots.append(look())


def driven(tmp_path, trials, bearable, seconds=9.0, before=1, cause=Cause.DIED, runner=Fragile, **changes):
    """A search driven on a fragile runner; returns driver, runner, site and what was to be seen."""
    site, display = standin.site(tmp_path, **changes), Seen()
    experiment = standin.experiment(question(trials), site)
    source = SearchSource(search_cells(experiment, {}))
    runner = runner(site.paths, bearable, seconds, before, cause)
    driver = Driver(experiment, runner, [])
    driver.run(source, [], display)
    return driver, runner, site, display.snapshots


class Slow(Fragile):
    """Has nothing to tell when it is asked for the first time."""

    asked = False

    def poll(self):
        if not self.asked:
            self.asked = True
            return []
        return super().poll()


def test_what_is_shown_tells_trials_that_run_from_those_that_ran(tmp_path):
    _, _, _, (first, *_, last) = driven(tmp_path, trials=5, bearable=8, runner=Slow)
    assert (first.running, first.ran, first.done, first.planned, first.seconds) == (5, 0, 0, 5, 0.0)
    assert (last.running, last.ran, last.done, last.planned, last.seconds) == (0, 5, 5, 5, 5.0)


def test_a_gpu_that_a_lost_worker_held_is_in_the_record_of_its_trial(tmp_path):
    _, _, site, _ = driven(tmp_path, trials=1, bearable=0, before=0, cause=Cause.RAISED, device="cuda")
    [line] = read_lines(site.paths.study("standin").jobs)
    assert find_result(site.paths, line["key"]).cost.gpu_s == 9.0


def test_what_a_lost_pack_left_runs_again_one_by_one_and_its_seconds_are_kept(tmp_path):
    driver, runner, site, _ = driven(tmp_path, trials=5, bearable=4)
    assert runner.packs == [5, 1, 1, 1, 1]
    lines = read_lines(site.paths.study("standin").jobs)
    # The pack held its worker for 9 s, of which the first trial's record has 1; four shared the others.
    assert [(line["seconds"], line["of"], line["blamed"]) for line in lines] == [(2.0, 4, False)] * 4
    assert sum(lost_seconds(site.paths, "standin").values()) == pytest.approx(8.0)
    assert driver.tally.seconds == pytest.approx(5 * 1.0 + 8.0)
    assert all(find_result(site.paths, line["key"]).status == TrialStatus.COMPLETE for line in lines)


@pytest.mark.parametrize(("cause", "runs"), [(Cause.HOST_MEMORY, 3), (Cause.RAISED, 1)])
def test_a_trial_that_ends_its_workers_alone_is_charged_for_each_of_them_once(tmp_path, cause, runs):
    driver, runner, site, _ = driven(tmp_path, trials=1, bearable=0, before=0, cause=cause)
    assert runner.packs == [1] * runs
    lines = read_lines(site.paths.study("standin").jobs)
    # The last loss stands in the trial's own record, so its line has no seconds.
    assert [(line["seconds"], line["blamed"]) for line in lines] == [(9.0, True)] * (runs - 1) + [(0.0, True)]
    record = find_result(site.paths, lines[0]["key"])
    assert (record.status, record.cost.seconds, record.cost.gpu_s) == (cause.policy.status, {"lost": 9.0}, 0.0)
    assert driver.tally.seconds == pytest.approx(9.0 * runs)
    assert driver.tally.failed == 1


class Unlucky(Fragile):
    """Loses so many packs whole, one after the other, and then none."""

    def submit(self, configs):
        self.bearable = 0 if len(self.packs) < self.before else 8
        self.packs.append(len(configs))
        loss = Loss(self.cause, "as the test asked", self.seconds) if len(self.packs) <= self.before else None
        self._ended.append(Ended(tuple(configs), loss))

    def poll(self):
        ended, self._ended = self._ended, []
        for config in (config for pack in ended if pack.loss is None for config in pack.configs):
            write_result(self.paths, scored(config, 0.5))
        return ended


OUTSIDE = [cause for cause in Cause if cause.policy.fault == "outside"]


@pytest.mark.parametrize("cause", OUTSIDE)
def test_what_a_site_does_nine_times_is_never_charged_to_a_trial(tmp_path, cause):
    driver, runner, site, _ = driven(tmp_path, trials=1, bearable=8, before=9, cause=cause, runner=Unlucky)
    driver.raise_if_put_off()
    assert runner.packs == [1] * 10
    lost = read_lost(site.paths.study("standin").jobs)
    assert [(line.cause, line.seconds, line.blamed) for line in lost] == [(cause, 9.0, False)] * 9
    assert find_result(site.paths, lost[0].key).status == TrialStatus.COMPLETE
    assert driver.tally.seconds == pytest.approx(9 * 9.0 + 1.0)
    assert driver.tally.failed == 0


@pytest.mark.parametrize("cause", OUTSIDE)
def test_a_pack_that_its_site_took_away_runs_again_as_a_pack(tmp_path, cause):
    """So that it trains as it would have; what a trial may have done after all is looked for after the second loss."""
    _, runner, *_ = driven(tmp_path, trials=4, bearable=8, before=2, cause=cause, runner=Unlucky)
    assert runner.packs == ([4, 4, 4] if cause.policy.certain else [4, 4, 1, 1, 1, 1])


@pytest.mark.parametrize("cause", OUTSIDE)
def test_a_trial_that_is_lost_again_and_again_has_no_record_and_the_next_driver_goes_on(tmp_path, cause):
    chances = cause.policy.chances
    driver, runner, site, _ = driven(tmp_path, trials=1, bearable=8, before=chances, cause=cause, runner=Unlucky)
    assert runner.packs == [1] * chances
    with pytest.raises(HarnessError, match=f"lost {chances} times to their site .*as the test asked.*same command"):
        driver.raise_if_put_off()
    [key] = {line.key for line in read_lost(site.paths.study("standin").jobs)}
    assert find_result(site.paths, key) is None
    driver, *_ = driven(tmp_path, trials=1, bearable=8, before=chances - 1, cause=cause, runner=Unlucky)
    driver.raise_if_put_off()
    assert find_result(site.paths, key).status == TrialStatus.COMPLETE


@pytest.mark.parametrize("status", [TrialStatus.PREEMPTED, TrialStatus.TIMED_OUT])
def test_a_record_of_an_earlier_version_that_charges_a_trial_with_its_site_is_opened_again(tmp_path, status):
    site = standin.site(tmp_path)
    [proposal] = SearchSource(search_cells(standin.experiment(question(1), site), {})).next(1)
    record = replace(scored(proposal.config, 0.5), status=status, scores=(), cost=CostRecord(seconds={"lost": 7.0}))
    record = replace(record, provenance=replace(record.provenance, started_at="2026-07-01T00:00:00+00:00"))
    for _ in range(2):  # the second time as after a driver that was killed before it deleted the record
        write_result(site.paths, record)
        driven(tmp_path, trials=1, bearable=8)
        assert find_result(site.paths, record.config.key).status == TrialStatus.COMPLETE
        assert lost_seconds(site.paths, "standin") == {record.config.key: 7.0}


def test_a_trial_that_reached_a_limit_of_its_own_stays_as_it_is(tmp_path):
    site = standin.site(tmp_path)
    [proposal] = SearchSource(search_cells(standin.experiment(question(1), site), {})).next(1)
    cost = CostRecord(seconds={"load": 1.0, "train": 60.0})
    write_result(site.paths, replace(scored(proposal.config, 0.5), status=TrialStatus.TIMED_OUT, scores=(), cost=cost))
    driver, runner, *_ = driven(tmp_path, trials=1, bearable=8)
    assert (runner.packs, driver.tally.failed) == ([], 1)


def test_what_an_earlier_driver_left_in_the_queue_is_waited_for_and_not_run_again(tmp_path):
    site = standin.site(tmp_path)
    experiment = standin.experiment(question(trials=4, families=standin.TOGETHER), site)
    asked = SearchSource(search_cells(experiment, {})).next(3)
    runner = Fragile(site.paths, bearable=8, seconds=9.0, before=0, cause=Cause.DIED)
    runner.submit([proposal.config for proposal in asked])
    driver = Driver(experiment, runner, [])
    driver.run(SearchSource(search_cells(experiment, {})), [], Display("test", False))
    assert (driver.tally.ran, driver.tally.statuses.total()) == (8 - len(asked), 8)


def test_packs_become_smaller_after_the_second_that_was_lost(tmp_path):
    _, runner, *_ = driven(tmp_path, trials=40, bearable=4)
    # Five packs of eight are cut from what is left; two are lost, and the trials of each run one by one.
    assert runner.packs[:16] == [8, *[1] * 7, 8, *[1] * 7]
    assert max(runner.packs[16:]) == 4


def test_a_family_without_hope_gives_up_and_says_what_that_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_COST", "2")
    spec = question(12, NEAR_AND_FAR, search={"give_up": 0.05})
    site = standin.site(tmp_path)
    summary = standin.run("search", spec, site)
    count = Counter(member.family for member in read_members(site.paths, spec.name))
    assert count == {"near": 12, "far": 4}
    [stop] = read_stops(site.paths, spec.name)
    assert (stop.family, stop.task, stop.base_model, stop.leader_family) == ("far", "one", "model", "near")
    assert (stop.scored, stop.left, stop.seconds) == (4, 8.0, 16.0)
    assert 0.989 < stop.best < 0.991 < 0.999 < stop.leader <= 1.0
    assert stop.chance <= stop.limit == 0.05
    assert stop.reason in summary.text()


def test_a_restart_keeps_to_what_was_given_up(tmp_path):
    spec = question(12, NEAR_AND_FAR, search={"give_up": 0.05})
    site = standin.site(tmp_path)
    standin.run("search", spec, site)
    members = read_members(site.paths, spec.name)
    assert standin.run("search", spec, site).ran == 0
    path = site.paths.study(spec.name).members
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    standin.run("search", spec, site)
    again = read_members(site.paths, spec.name)
    assert [(m.key, m.number) for m in again] == [(m.key, m.number) for m in members]
    assert len(read_stops(site.paths, spec.name)) == 1


@pytest.mark.parametrize(
    "change", [{"fidelity": 0.0}, {"family": "nobody"}, {"number": 99}, {"task": "another"}], ids=str
)
def test_a_line_that_no_driver_of_the_study_wrote_stops_it(change, tmp_path):
    spec, site = standin.study(), standin.site(tmp_path)
    for phase in ("base", "search"):
        standin.run(phase, spec, site)
    path = site.paths.study(spec.name).members
    *others, last = path.read_text().splitlines()
    path.write_text("\n".join([*others, json.dumps(json.loads(last) | change)]) + "\n")
    with pytest.raises(StorageError, match=r"the line of trial .* has no place in it"):
        standin.run("search", spec, site)


def test_a_family_is_not_given_up_for_what_another_base_model_scores(tmp_path):
    spec = question(12, base_models=["strong", "weak"], search={"give_up": 0.05})
    experiment, stops, told = standin.experiment(spec, standin.site(tmp_path)), [], []
    source = SearchSource(search_cells(experiment, {}), stopped=stops.append)
    while proposals := source.next(8, waiting=True):
        for number, proposal in enumerate(proposals):
            value = (0.9 if proposal.member.base_model == "strong" else 0.1) + number / 1000
            source.tell(proposal, scored(proposal.config, value))
            told.append(proposal.member.base_model)
    assert Counter(told) == {"strong": 12, "weak": 12}
    assert stops == []


def test_without_the_option_every_family_uses_its_budget(tmp_path):
    spec = question(12, NEAR_AND_FAR)
    site = standin.site(tmp_path)
    standin.run("search", spec, site)
    count = Counter(member.family for member in read_members(site.paths, spec.name))
    assert count == {"near": 12, "far": 12}
    assert not site.paths.study(spec.name).stops.exists()


def test_another_base_model_waits_until_a_worker_would(tmp_path):
    spec = question(trials=6, sampler="tpe", base_models=["first", "second"])
    source = SearchSource(search_cells(standin.experiment(spec, standin.site(tmp_path)), {}))
    assert {proposal.member.base_model for proposal in source.next(8)} == {"first"}
    assert source.next(8) == []
    assert source.left == 12 - 4
    asked = [source.next(8, waiting=True)[0].member.base_model for _ in range(3)]
    assert asked == ["first", "first", "second"]


@pytest.mark.parametrize("pack", [1, 2])
def test_with_fewer_workers_than_trials_all_families_and_tasks_advance_together(tmp_path, pack):
    """Three families on two tasks, one worker: at no time is any of the six a pack further than another one."""
    families = {
        "a": {"method": "lora"},
        "b": {"method": "lora", "params": {"target": "attention"}},
        "c": {"method": "rslora"},
    }
    spec = standin.study(families=families, budget={"trials": 4, "steps": 9})
    standin.run("search", spec, standin.site(tmp_path, options={"pack": str(pack)}))
    asked = Counter((family, task) for family in families for task in ("one", "two"))
    asked.subtract(asked.keys())
    for member in read_members(standin.site(tmp_path).paths, "standin"):
        asked[member.family, member.task] += 1
        assert max(asked.values()) - min(asked.values()) <= pack
    assert set(asked.values()) == {4}


def test_a_fixed_list_is_handed_out_by_kind(tmp_path):
    spec = question(trials=3, families=standin.TOGETHER)
    cells = search_cells(standin.experiment(spec, standin.site(tmp_path)), {})
    configs = [cell.config(job) for cell in cells for job in cell.next(3)]
    source = FixedSource([Proposal(None, config) for config in configs])
    assert [len(source.next(2)) for _ in range(5)] == [2, 1, 2, 1, 0]


def test_the_time_limit_of_a_trial_comes_from_the_runner(tmp_path):
    spec, limits = question(), {"time_limit_min": "1.5", "idle_s": "7"}
    limited = duty(spec, standin.site(tmp_path, "local", options=limits))
    assert (limited.workspace.time_limit_s, limited.idle_s) == (90.0, 7.0)
    assert duty(spec, standin.site(tmp_path, "local")).workspace.time_limit_s is None


@pytest.mark.parametrize(("minutes", "seconds"), [(None, 120.0), ("5", 300.0), ("0", math.inf)])
def test_a_site_says_how_often_a_trial_is_saved(tmp_path, monkeypatch, minutes, seconds):
    monkeypatch.setenv("HARNESS_CHECKPOINT_MIN", "2")
    options = {"checkpoint_min": minutes} if minutes else {}
    assert duty(question(), standin.site(tmp_path, "local", options=options)).workspace.checkpoint_s == seconds


def test_a_pack_has_eight_trials_unless_told_otherwise():
    assert parse_options("local", {}).pack == 8


def test_the_longer_nothing_ends_the_more_rarely_the_driver_looks():
    """A twentieth of the quiet time, between .03 s and a second: a day of waiting costs 86,400 looks, not 2.9 million."""
    assert [pause_s(quiet) for quiet in (0, 0.5, 2, 10, 20, 86_400)] == pytest.approx([0.03, 0.03, 0.1, 0.5, 1, 1])


def test_nothing_starts_on_a_disk_that_is_nearly_full(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=3 << 20)
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="must have 64 MiB free before trials start, but has 3: free space"):
        standin.run("search", standin.study(), standin.site(tmp_path))
