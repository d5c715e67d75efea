"""Cells: equal budgets, promotions, restarts; with a trial replaced by a formula."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.plugins import load
from harness.records.trial import CostRecord, Evaluation, ModelRef, Score, TaskRef, TrialResult, TrialStatus
from harness.search.cell import Cell
from harness.search.design import CellDesign
from harness.search.schedulers.base import Promotion, Rung
from harness.search.spending import seconds
from harness.space import defaults
from harness.study.family import resolved_families
from harness.study.spec import Search
from tests.driver import standin

RATES = {"learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}


def cell(trials=4, scheduler="none", stages=1, higher=True, seconds=None, guess_s=1.0, sampler="random", **search):
    budget = {"gpu_seconds": seconds} if seconds else {"trials": trials}
    stage = {"method": "none", "params": RATES}
    spec = standin.study(
        families={"a": {"stages": [stage] * stages}},
        budget=budget | {"steps": 9},
        search={"sampler": sampler, "scheduler": scheduler} | search,
    )
    return built(spec, higher_is_better=higher, guess_s=guess_s)


def built(spec, **changes):
    """The only cell of a study."""
    return Cell(
        CellDesign(
            search=spec.search,
            budget=spec.budget,
            seed=spec.seed,
            family=resolved_families(spec)["a"],
            model=ModelRef("m", "r"),
            task=TaskRef("t", "f"),
            evaluation=Evaluation(),
            steps=lambda params: 9,
            sampler=load("search/samplers", spec.search.sampler)(),
            scheduler=load("search/schedulers", spec.search.scheduler)(),
            **changes,
        )
    )


def result(config, value, seconds=1.0):
    """A record with this score; None is a crash, infinity a score that no comparison may see."""
    if value is None:
        return TrialResult(
            config=config, status=TrialStatus.CRASHED, reason="test", cost=CostRecord(seconds={"train": seconds})
        )
    score = Score(
        task="t",
        split="validation",
        metric="acc",
        value=value,
        stderr=None,
        n=10,
        higher_is_better=True,
        comparability="same",
    )
    return TrialResult(
        config=config, status=TrialStatus.COMPLETE, scores=(score,), cost=CostRecord(seconds={"train": seconds})
    )


def drive(subject, values, workers=1, seconds=1.0, pack=1):
    """Run a cell to its end in packs while fewer than `workers` jobs run, the oldest ending first; returns jobs in order."""
    jobs, running, numbers = [], [], iter(values)
    while True:
        while len(running) < workers and (found := subject.next(pack, waiting=True)):
            assert len({job.rung for job in found}) == 1
            assert len(found) <= pack
            jobs += found
            running += found
        if not running:
            return jobs
        job = running.pop(0)
        subject.tell(job, result(subject.config(job), next(numbers, 0.5), seconds))


scores = st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=60, max_size=60)


@settings(max_examples=40)
@given(
    trials=st.integers(1, 12),
    scheduler=st.sampled_from(["none", "successive_halving"]),
    reduction=st.integers(2, 4),
    stages=st.integers(1, 2),
    workers=st.tuples(st.integers(1, 5), st.integers(1, 8)),
    values=scores,
)
def test_no_cell_trains_more_than_its_budget_nor_leaves_a_new_trial_unpaid(
    trials, scheduler, reduction, stages, workers, values
):
    subject = cell(trials, scheduler, stages=stages, reduction=reduction)
    jobs = drive(subject, values, workers[0], pack=workers[1])
    rungs = subject.design.rungs
    cost = sum(rungs[j.rung] - (rungs[j.rung - 1] if j.rung and stages == 1 else 0) for j in jobs)
    assert cost <= trials + 1e-4
    assert len(set(jobs)) == len(jobs)
    if scheduler == "none":
        assert len(jobs) == trials


@settings(max_examples=40)
@given(
    trials=st.integers(1, 12),
    reduction=st.integers(2, 4),
    workers=st.integers(1, 5),
    pack=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_halving_brings_at_least_one_trial_to_full_fidelity(trials, reduction, workers, pack, seed):
    values = [((seed * 7 + i * 31) % 100) / 100 for i in range(200)]
    subject = cell(trials, "successive_halving", reduction=reduction, min_fidelity=1 / reduction**2)
    drive(subject, values, workers, pack=pack)
    assert subject.best() is not None


@settings(max_examples=40)
@given(workers=st.integers(1, 5), pack=st.integers(1, 8), values=scores)
def test_halving_promotes_only_what_finished_below_with_a_score(workers, pack, values):
    subject = cell(6, "successive_halving")
    done = {}
    for job in drive(subject, values, workers, pack=pack):
        if job.rung:
            assert (job.number, job.rung - 1) in done
            assert done[job.number, job.rung - 1].status == TrialStatus.COMPLETE
        done[job.number, job.rung] = subject.history.results[job]


def test_halving_spends_its_budget_as_worked_out_by_hand():
    """Rungs 1/9, 1/3, 1: a new trial costs 1/9, going on 2/9 and 6/9. Scores fall with the trial's number.

    Trial 0 goes on after three trials, 1 after six, 2 after nine, and of those three 0 goes on to the end: that is
    9/9 + 3 * 2/9 + 6/9 = 21/9 of the 27/9. Then three new trials (3/9), the fourth of the bottom's best (2/9), and one
    more new trial (1/9).
    """
    subject = cell(trials=3, scheduler="successive_halving")
    jobs, order = [], []
    while found := subject.next():
        [job] = found
        jobs.append(job.rung)
        order.append(job.number)
        subject.tell(job, result(subject.config(job), 1 - job.number / 100))
    assert jobs == [0, 0, 0, 1] * 3 + [2] + [0, 0, 0, 1, 0]
    assert [number for number, rung in zip(order, jobs, strict=True) if rung] == [0, 1, 2, 0, 3]
    share = {0: Fraction(1, 9), 1: Fraction(2, 9), 2: Fraction(2, 3)}
    assert sum(share[rung] for rung in jobs) == 3


def test_the_first_trial_is_the_literature_default():
    subject = cell()
    [job] = subject.next()
    assert subject.history.points[job.number] == defaults(subject.design.family.space)


def test_promotion_takes_the_best_third_and_the_earlier_of_equals():
    scheduler = load("search/schedulers", "successive_halving")()
    bottom = Rung(1 / 3, {0: 0.5, 1: 0.9, 2: 0.9, 3: None, 4: 0.1, 5: 0.2}, frozenset())
    assert scheduler.promote([bottom, Rung(1.0, {}, frozenset())], Search()) == Promotion(1, 1)
    promoted = Rung(1 / 3, bottom.values, frozenset({1}))
    assert scheduler.promote([promoted, Rung(1.0, {}, frozenset())], Search()) == Promotion(2, 1)
    both = Rung(1 / 3, bottom.values, frozenset({1, 2}))
    assert scheduler.promote([both, Rung(1.0, {}, frozenset())], Search()) is None


def test_rungs_follow_the_reduction_down_to_the_lowest_fidelity():
    scheduler = load("search/schedulers", "successive_halving")()
    assert scheduler.rungs(Search(min_fidelity=1 / 9)) == pytest.approx((1 / 9, 1 / 3, 1))
    assert scheduler.rungs(Search(min_fidelity=0.3, reduction=2)) == (0.5, 1.0)
    assert scheduler.rungs(Search(min_fidelity=1.0)) == (1.0,)


def test_a_restored_cell_asks_what_the_first_one_would_have_asked():
    first = cell(trials=6)
    drive(first, [0.1, 0.5, 0.3, 0.2, 0.9, 0.4])
    second = cell(trials=6)
    for number in range(3):
        job = second.restore(number, first.history.points[number], 1.0)
        second.tell(job, first.history.results[job])
    drive(second, [0.2, 0.9, 0.4])
    assert second.history.points == first.history.points


def test_the_best_of_a_loss_is_the_smallest():
    subject = cell(trials=3, higher=False)
    drive(subject, [2.0, 1.0, 3.0])
    assert subject.best().number == 1
    assert subject.best().value == -1.0


@pytest.mark.parametrize("value", [None, math.inf, math.nan])
def test_failed_and_non_finite_trials_count_against_the_budget_and_are_never_best(value):
    subject = cell(trials=2)
    jobs = drive(subject, [value, 0.1])
    assert len(jobs) == 2
    assert subject.best().number == 1


def test_a_budget_in_seconds_ends_when_the_next_trial_would_pass_it():
    # 10 s with trials of 3 s: three cost 9 s, a fourth would make it 12 s.
    subject = cell(seconds=10, guess_s=0.001)
    assert len(drive(subject, [0.5] * 9, workers=4, seconds=3.0)) == 3
    assert subject.spending.spent == pytest.approx(9.0)


def test_a_fused_trial_takes_of_a_budget_in_seconds_what_it_would_have_taken_alone():
    # Eight trials that trained for 1.5 s each as their share of a pack, and would have trained for 3 s each alone.
    shared = CostRecord(seconds={"train": 1.5, "evaluate": 0.5, "load": 9.0}, solo_equivalent_s=3.0, trained_with=8)
    subject = cell(seconds=10, guess_s=0.001)
    [job] = subject.next()
    record = replace(result(subject.config(job), 0.5), cost=shared)
    subject.tell(job, record)
    assert seconds(record) == pytest.approx(3.5)
    assert subject.spending.spent == pytest.approx(3.5)
    assert len(subject.next(8)) == 1  # 3.5 + 3.5 s; a third would make it 10.5 s
    assert seconds(replace(record, cost=replace(shared, gpu_s=11.0))) == pytest.approx(3.5)
    assert seconds(replace(record, cost=replace(shared, gpu_s=22.0))) == pytest.approx(7.0)  # on two GPUs


def test_trials_that_depend_on_no_result_may_all_start_in_a_row():
    assert len(cell(trials=12).next(8)) == 8
    assert [len(cell(trials=12, sampler=name).next(8)) for name in ("tpe", "gp")] == [4, 4]
    assert len(cell(trials=12, give_up=0.05).next(8)) == 4
    halving = cell(trials=12, scheduler="successive_halving")  # 9 at a ninth bring one to the end
    assert [len(halving.next(8)), len(halving.next(8)), len(halving.next(8))] == [8, 1, 0]


def test_later_trials_run_ahead_of_results_by_half_of_those_seen():
    subject = cell(trials=20, sampler="tpe")
    first = subject.next(8)
    assert subject.next(8) == []
    assert len(subject.next(8, waiting=True)) == 1  # rather than let a worker idle
    for job in first:
        subject.tell(job, result(subject.config(job), 0.5))
    assert len(subject.next(8)) == 4 // 2 - 1
    assert subject.next(8) == []


def test_points_asked_in_a_row_are_those_asked_one_by_one_where_no_result_comes_between():
    together, one_by_one = cell(trials=8), cell(trials=8)
    together.next(8)
    for _ in range(8):
        one_by_one.next()
    assert together.history.points == one_by_one.history.points


def test_promotions_of_one_rung_are_asked_together():
    subject = cell(trials=4, scheduler="successive_halving")
    for number, job in enumerate(subject.next(9)):
        subject.tell(job, result(subject.config(job), 1 - number / 100))
    assert [(job.number, job.rung) for job in subject.next(8)] == [(0, 1), (1, 1), (2, 1)]


def test_an_exhausted_space_ends_the_cell_with_a_note():
    spec = standin.study(
        families={"a": {"method": "none", "params": {"learning_rate": 0.1}}}, budget={"trials": 5, "steps": 9}
    )
    subject = built(spec, higher_is_better=True)
    assert len(drive(subject, [0.5])) == 1
    assert "1 of 5 trials" in subject.note


def test_trials_left_are_those_that_run_and_those_that_the_rest_of_the_budget_pays_for():
    subject = cell(trials=4)
    first, _ = subject.next(2)
    subject.tell(first, result(subject.config(first), 0.5))
    assert subject.spending.trials_left == 3  # one runs, two are paid for
    assert subject.spending.unused == 2
    assert subject.planned_jobs == 4


def test_a_pruned_trial_is_neither_best_nor_scored():
    subject = cell(trials=2)
    pruned, complete = subject.next(2)
    subject.tell(pruned, replace(result(subject.config(pruned), 0.9), status=TrialStatus.PRUNED))
    subject.tell(complete, result(subject.config(complete), 0.1))
    assert subject.best().number == complete.number
    assert [score.value for score in subject.history.scored()] == [0.1]
