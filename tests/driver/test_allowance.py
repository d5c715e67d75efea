"""A study's own budget stops it: what was spent, whatever became of it, and what runs, never come to more."""

import pytest

from harness.driver.plan import plan_study
from harness.errors import BudgetReached, SpecError
from harness.records.bill import Share, fewer, read_halt
from harness.records.causes import Cause
from harness.records.lost_work import Lost, append_lost
from harness.records.results import find_result
from harness.records.study_trials import read_members
from harness.runners.base import Ended, Loss
from harness.runners.inline import InlineBackend, _InlineRunner
from tests.driver import standin


@pytest.fixture(autouse=True)
def _noted(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_RAN", str(tmp_path / "ran"))
    monkeypatch.setenv("STANDIN_COST", "10")


def limited(seconds, **changes):
    """One task, two families of six trials of ten seconds; the whole study may take so many wall seconds."""
    budget = {"trials": 6, "steps": 9, "gpu_hours": seconds / 3600}
    return standin.study(tasks=["one"], budget=budget, **changes)


def ran(folder):
    path = folder / "ran"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def spent(site, spec):
    keys = {member.key for member in read_members(site.paths, spec.name)}
    results = [result for key in keys if (result := find_result(site.paths, key))]
    return sum(result.cost.total_s for result in results)


def test_a_search_stops_before_it_would_cost_more_and_goes_on_when_the_budget_is_raised(tmp_path):
    spec, site = limited(75.0), standin.site(tmp_path, options={"pack": "1"})
    with pytest.raises(BudgetReached) as raised:
        standin.run("search", spec, site)
    # Seven trials of ten seconds fit into 75 s; the families share their first trial, which counts for both.
    assert len(ran(tmp_path)) == 7
    assert spent(site, spec) == 70.0
    said = str(raised.value)
    assert "has spent 0.0194 of 0.0208333 hours" in said
    assert "about 4 trials of search are left undone (a 4 of 6, b 4 of 6: not to be compared" in said
    assert "raise budget.gpu_hours in the study file and type the same command again" in said
    assert raised.value.exit_code == 8
    files = site.paths.study(spec.name)
    assert not files.done("search").exists()
    halt = read_halt(files)
    assert (halt.phase, halt.text, halt.families["a"]) == ("search", said, Share(ended=4, planned=6))
    more = limited(1000.0)
    assert more.fingerprint == spec.fingerprint
    assert standin.run("search", more, site).ran == 4
    assert sorted(ran(tmp_path)) == sorted({member.key for member in read_members(site.paths, spec.name)})
    assert read_halt(files) is None


def test_a_budget_that_suffices_changes_nothing(tmp_path):
    keys = []
    for folder, spec in ((tmp_path / "a", limited(1000.0)), (tmp_path / "b", standin.study(
        tasks=["one"], budget={"trials": 6, "steps": 9}
    ))):  # fmt: skip
        site = standin.site(folder)
        assert standin.run("search", spec, site).exit_code == 0
        keys.append([member.key for member in read_members(site.paths, spec.name)])
    assert keys[0] == keys[1]


def test_packs_are_cut_where_the_budget_ends(tmp_path):
    spec, site = limited(35.0, families=standin.TOGETHER), standin.site(tmp_path)
    standin.run("base", limited(1000.0, families=standin.TOGETHER, name="other"), standin.site(tmp_path))
    with pytest.raises(BudgetReached):
        standin.run("search", spec, site)
    assert spent(site, spec) <= 40.0  # of the first trials, what they cost is a guess by a formula


def test_what_phases_before_it_spent_counts_and_so_does_what_was_lost(tmp_path):
    spec, site = limited(66.0), standin.site(tmp_path, options={"pack": "1"})
    standin.run("base", spec, site)  # two trials: 20 s
    config = find_result(site.paths, read_members(site.paths, spec.name)[0].key).config
    lost = Lost(configs=[config], seconds=25.0, cause=Cause.KILLED, reason="as the test asked")
    append_lost(site.paths.study(spec.name).jobs, lost)
    with pytest.raises(BudgetReached, match=r"has spent 0\.0181 of"):  # 20 + 25 + 2 x 10 s
        standin.run("search", spec, site)


def test_what_another_study_paid_for_costs_nothing(tmp_path):
    site = standin.site(tmp_path)
    standin.run("search", limited(1000.0, name="other"), site)
    summary = standin.run("search", limited(1.0), site)
    assert (summary.ran, summary.exit_code) == (0, 0)


def test_a_trial_that_was_lost_is_not_tried_again_when_the_budget_is_spent(tmp_path, monkeypatch):
    class Losing(_InlineRunner):
        """Every pack is lost after half a minute."""

        def submit(self, configs):
            self._ended.append(Ended(tuple(configs), Loss(Cause.PREEMPTED, "as the test asked", 30.0)))

    monkeypatch.setattr(InlineBackend, "open", lambda self, study, duty: Losing(duty))
    with pytest.raises(BudgetReached, match=r"has spent 0\.0\d+ of"):
        standin.run("search", limited(100.0), standin.site(tmp_path, options={"pack": "1"}))


def test_money_is_counted_by_the_studys_prices_and_refused_without(tmp_path):
    def priced(prices):
        budget = {"trials": 6, "steps": 9, "money": 0.05}
        return standin.study(tasks=["one"], budget=budget, prices=prices)

    site = standin.site(tmp_path, options={"pack": "1"})
    with pytest.raises(SpecError, match=r"add prices\.cpu_hour"):
        plan_study(standin.experiment(priced({}), site))
    # 3.6 an hour are 0.01 for each trial; the stand-in's records name no money, so the prices do.
    with pytest.raises(BudgetReached, match=r"has spent 0\.05 of 0\.05 USD"):
        standin.run("search", priced({"cpu_hour": 3.6}), site)
    assert len(ran(tmp_path)) == 5


def test_a_plan_says_that_the_study_will_not_come_to_its_end(tmp_path):
    notes = plan_study(standin.experiment(limited(1.0), standin.site(tmp_path))).notes
    assert any("budget.gpu_hours: about" in note and "will probably stop before its end" in note for note in notes)
    assert not any(
        "budget" in note for note in plan_study(standin.experiment(limited(1e6), standin.site(tmp_path))).notes
    )


def test_families_that_got_all_their_trials_are_not_named():
    assert fewer({"a": Share(ended=3, planned=3), "b": Share(ended=1, planned=3)}) == "b 1 of 3"
