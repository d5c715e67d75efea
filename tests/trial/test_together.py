"""Trials of a pack are trained and scored together, with the records they would have alone; and apart where that fails."""

import dataclasses
import time

import pyarrow.parquet
import pytest
import torch

from harness.errors import SpecError
from harness.evaluation.evaluate import Evaluator
from harness.nn.optimizer import learning_rate
from harness.records.paths import Paths
from harness.records.trial import Ended, TaskRef, TrialStatus
from harness.training.alone import Alone
from harness.training.solo_cost import Solo, SoloCosts
from harness.training.together import Together
from harness.trial import train_group
from harness.trial.group import Workspace, run_pack, run_trial
from harness.trial.process import WarmProcess
from tests.tiny import config, save_gpt2, save_llama, stage

STAGES = [
    {"rank": 2, "learning_rate": 1e-3},
    {"rank": 8, "learning_rate": 5e-3, "schedule": "linear", "weight_decay": 0.1},
    {"rank": 16, "learning_rate": 2e-3, "adapter_dropout": 0.2, "max_grad_norm": 0.1},
    {"rank": 4, "learning_rate": 2e-3, "alpha": 8.0},
]


@pytest.fixture
def workspace(world, tmp_path):
    return Workspace(Paths(tmp_path / "together"), (world.tasks,), device="cpu")


@pytest.fixture
def apart(workspace, tmp_path):
    """Elsewhere, one by one."""
    return dataclasses.replace(workspace, paths=Paths(tmp_path / "apart"), together=1)


def four(world, method="lora", **options):
    own = STAGES if method == "lora" else [{"learning_rate": rate} for rate in (1e-3, 2e-3, 3e-4, 1e-3)]
    return [config(world, stage(method, **params), seed=seed, **options) for seed, params in enumerate(own)]


def by_step(result):
    return [(p.fraction, p.step, p.tokens) for p in result.curve]


def losses(result):
    return [point.loss for point in result.curve]


def scores(result):
    """Curve and final scores: shares of right answers are exact, log-likelihoods are not."""
    return [p.score for p in result.curve] + [score.value for score in result.scores]


def assert_same(together, alone):
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.status == theirs.status == "complete", (mine.reason, theirs.reason)
        assert by_step(mine) == by_step(theirs)
        assert losses(mine) == pytest.approx(losses(theirs), abs=1e-5)
        assert scores(mine) == pytest.approx(scores(theirs), abs=1e-4)
        for name in ("tokens", "supervised_tokens", "flops", "trainable_params", "total_params", "artifact_bytes"):
            assert getattr(mine.cost, name) == getattr(theirs.cost, name), name


@pytest.mark.parametrize(("method", "task"), [("lora", "colour"), ("full", "echo"), ("lora", "text")])
def test_records_are_those_of_trials_alone(method, task, world, workspace, apart):
    off_target = [name for name in ("colour", "echo", "text") if name != task]
    trials = four(world, method, task=task, off_target=off_target)
    together, alone = run_pack(trials, workspace), run_pack(trials, apart)
    assert_same(together, alone)
    assert [r.cost.trained_with for r in together] == [4] * 4
    assert [r.cost.trained_with for r in alone] == [1] * 4
    assert not any(r.provenance.effective.alone for r in (*together, *alone))
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.provenance.effective.stages == theirs.provenance.effective.stages
        assert mine.provenance.effective.peak_memory_from.endswith(", of steps alone")
        items = [pyarrow.parquet.read_table(w.paths.items(mine.config.key)).to_pandas() for w in (workspace, apart)]
        assert len(items[0]) == len(items[1]) == 24
        assert items[0]["value"].to_list() == pytest.approx(items[1]["value"].to_list(), abs=1e-4)
    assert run_pack(trials, workspace) == together


def test_rungs_of_packs_add_up_to_the_straight_run(world, workspace, apart, tmp_path):
    """Two of four are promoted, and a new one joins them; the base drops out, so random numbers matter."""
    model = save_gpt2(tmp_path / "noisy", dropout=0.1, attn_pdrop=0.0)
    keeping = dataclasses.replace(workspace, keep_checkpoint=True)
    trials = four(world, model=model, steps=9, fractions=(0.5, 1.0))
    rungs = run_pack([one.at(1 / 3) for one in trials[:3]], keeping)
    assert [r.cost.trained_with for r in rungs] == [3] * 3
    promoted = run_pack([trials[0], trials[2], trials[3]], keeping)
    assert [r.cost.trained_with for r in promoted] == [3] * 3
    straight = run_pack([trials[0], trials[2], trials[3]], apart)
    for mine, theirs in zip(promoted, straight, strict=True):
        assert by_step(mine) == by_step(theirs)
        assert losses(mine) == pytest.approx(losses(theirs), abs=1e-5)
        assert scores(mine) == pytest.approx(scores(theirs), abs=1e-4)
    assert [r.provenance.effective.inherited and r.provenance.effective.inherited.key for r in promoted] == [
        rungs[0].config.key,
        rungs[2].config.key,
        None,
    ]
    assert rungs[0].cost.tokens + promoted[0].cost.tokens == straight[0].cost.tokens
    # what the continuation would have taken alone is of its own steps
    assert promoted[0].cost.solo_equivalent_s < 0.9 * promoted[2].cost.solo_equivalent_s


def test_trials_at_other_fidelities_end_one_after_the_other(world, workspace, apart):
    full, half, third, _ = four(world, steps=9)
    trials = [full, half.at(0.5), third.at(1 / 3)]
    together = run_pack(trials, workspace)
    assert [r.curve[-1].step for r in together] == [9, 4, 3]
    assert_same(together, run_pack(trials, apart))


def test_what_is_kept_of_each_is_its_own(world, workspace, apart):
    from safetensors.torch import load_file

    trials = four(world)[:2]
    kept = []
    for where in (workspace, apart):
        where = dataclasses.replace(where, keep_model=True)
        run_pack(trials, where)
        kept.append([load_file(where.paths.model(one.key) / "model.safetensors") for one in trials])
    for mine, theirs in zip(*kept, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.allclose(mine[name], theirs[name], atol=1e-5) for name in mine)
    assert not all(torch.allclose(kept[0][0][name], kept[0][1][name], atol=1e-5) for name in kept[0][0])


def test_one_that_diverges_has_a_record_of_that_and_the_others_are_complete(world, workspace, apart, monkeypatch):
    def rate(params, step, steps):
        return 1e30 if params["rank"] == 8 else learning_rate(params, step, steps)

    for module in ("alone", "together"):
        monkeypatch.setattr(f"harness.training.{module}.learning_rate", rate)
    together, alone = run_pack(four(world), workspace), run_pack(four(world), apart)
    assert [r.status for r in together] == [r.status for r in alone] == ["complete", "diverged", "complete", "complete"]
    assert together[1].reason == alone[1].reason
    assert together[1].scores == ()
    assert together[1].cost.tokens == alone[1].cost.tokens > 0
    assert together[1].cost.flops == alone[1].cost.flops > 0
    del together[1], alone[1]
    assert_same(together, alone)


def test_one_whose_score_is_not_finite_ends_there(world, workspace, monkeypatch):
    usual = Evaluator.evaluate

    def evaluate(self, *arguments, **options):
        outcomes = usual(self, *arguments, **options)
        if len(outcomes) == 4:  # nothing has ended yet
            outcomes[2] = Ended(TrialStatus.DIVERGED, "no")
        return outcomes

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    results = run_pack(four(world, steps=6), workspace)
    assert [r.status for r in results] == ["complete", "complete", "diverged", "complete"]
    assert results[2].provenance.effective.stages[0].steps == 3
    assert 0 < results[2].cost.tokens < results[0].cost.tokens
    assert [r.cost.trained_with for r in results] == [4] * 4


def test_one_that_cannot_be_set_up_leaves_the_others_together(world, workspace, monkeypatch):
    from harness.plugins import load

    usual = load("methods", "lora").config

    def config_of(self, model, setup):
        if setup.params["rank"] == 8:
            raise RuntimeError("no such rank")
        return usual(self, model, setup)

    monkeypatch.setattr(load("methods", "lora"), "config", config_of)
    results = run_pack(four(world), workspace)
    assert [r.status for r in results] == ["complete", "crashed", "complete", "complete"]
    assert "no such rank" in results[1].reason
    assert workspace.paths.traceback(results[1].config.key).exists()
    assert [r.cost.trained_with for r in results] == [3, 1, 3, 3]


class OfAHundredBytes(SoloCosts):
    """Has measured steps of 100 bytes each."""

    def calibrate(self, learners, kind):
        return [Solo(trainable=1, seconds_per_token=1e-3, peak_memory_bytes=1, step_memory_bytes=100)] * len(learners)


@pytest.fixture
def process():
    process = WarmProcess()
    process.solo_costs = OfAHundredBytes()
    return process


def test_as_many_as_the_forecast_says_fit_train_together(world, workspace, process, monkeypatch):
    """Steps of 100 bytes each, of which 250 are free: two and two."""
    monkeypatch.setattr(train_group, "free_memory", lambda device: 250)
    results = run_pack(four(world), workspace, process)
    assert [r.status for r in results] == ["complete"] * 4
    assert [r.cost.trained_with for r in results] == [2] * 4
    assert not any(r.provenance.effective.alone for r in results)


def test_where_not_even_two_fit_each_is_alone_and_says_why(world, workspace, process, monkeypatch):
    monkeypatch.setattr(train_group, "free_memory", lambda device: 150)
    results = run_pack(four(world)[:3], workspace, process)
    assert [r.cost.trained_with for r in results] == [1] * 3
    assert {r.provenance.effective.alone for r in results[:2]} == {
        "2 trials need 200 bytes together, of which 150 are free"
    }


def test_where_together_is_slower_each_is_alone_and_the_next_pack_is_not_tried(world, workspace, apart, monkeypatch):
    """Also on another task: what trains decides, not what is asked."""
    monkeypatch.setattr("harness.training.solo_cost._times_as_long", lambda learners, solos: 1.34)
    process, stacks = WarmProcess(), []
    usual = Together.__init__
    monkeypatch.setattr(Together, "__init__", lambda self, learners: stacks.append(1) or usual(self, learners))
    results = run_pack(four(world)[:2], workspace, process)
    tried = len(stacks)
    others = run_pack(four(world, task="echo")[:2], workspace, process)
    assert len(stacks) == tried > 0
    reason = "together, steps took 1.3 times as long as one trial after the other"
    assert {r.provenance.effective.alone for r in (*results, *others)} == {reason}
    assert {r.cost.trained_with for r in (*results, *others)} == {1}
    assert all(
        0 < r.cost.solo_equivalent_s < r.cost.seconds["train"] for r in results
    )  # the attempt is not its own time
    assert {r.cost.solo_equivalent_s for r in others} == {None}
    assert_same(results, run_pack(four(world)[:2], apart))


@pytest.mark.parametrize("where", ["__init__", "forward"])
def test_out_of_memory_together_is_two_packs(where, world, workspace, apart, monkeypatch):
    """Torch refuses memory to four at once, when they are stacked or in a step."""
    usual = getattr(Together, where)

    def refuse(self, first, *others):
        learners = first if where == "__init__" else self.learners
        if len(learners) > 2:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return usual(self, first, *others)

    monkeypatch.setattr(Together, where, refuse)
    together = run_pack(four(world), workspace)
    assert [r.cost.trained_with for r in together] == [2] * 4
    assert_same(together, run_pack(four(world), apart))


def test_an_error_that_is_nobodys_own_is_tried_again_one_by_one(world, workspace, apart, monkeypatch):
    def fail(self):
        raise ValueError("the stack fell over")

    monkeypatch.setattr(Together, "optimizer_step", fail)
    together = run_pack(four(world), workspace)
    for result in together:
        assert "ValueError: the stack fell over" in result.provenance.effective.alone
        assert result.cost.trained_with == 1
        assert 0 < result.cost.solo_equivalent_s < result.cost.seconds["train"]  # without its share of the attempt
    assert_same(together, run_pack(four(world), apart))


def test_what_the_failed_attempt_took_stays_on_the_bill(world, workspace, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    usual = Alone._step

    def fail(self):
        now[0] += 10.0
        raise ValueError("the stack fell over")

    def step(self):
        now[0] += 1.0
        return usual(self)

    monkeypatch.setattr(Together, "optimizer_step", fail)
    monkeypatch.setattr(Alone, "_step", step)
    results = run_pack(four(world, steps=6), workspace)
    # two were measured alone for four steps, all failed together for 10 s, and each then took six steps
    assert [r.cost.seconds["train"] for r in results] == [pytest.approx((2 * 4 + 10) / 4 + 6)] * 4


def test_a_model_that_cannot_be_stacked_is_trained_alone_and_says_why(world, workspace, apart, tmp_path):
    model = save_llama(tmp_path / "noisy", dropout=0.1)
    together, alone = run_pack(four(world, model=model), workspace), run_pack(four(world, model=model), apart)
    assert {r.provenance.effective.alone for r in together} == {
        "attention_dropout of the base draws random numbers that trials would share"
    }
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.status == "complete", mine.reason
        assert mine.scores == theirs.scores
        assert losses(mine) == losses(theirs)


def test_a_model_that_mixes_rows_is_found_out_before_the_first_step(world, workspace, monkeypatch):
    """The first loss together is compared with the one alone."""
    usual = Together.forward
    monkeypatch.setattr(Together, "forward", lambda self, batch, seeds: usual(self, batch, seeds).roll(1, 0))
    results = run_pack(four(world), workspace)
    for result in results:
        assert result.status == "complete", result.reason
        assert result.provenance.effective.alone.startswith("together its first loss is ")


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        ([{"method": "prefix_tuning"}], "method prefix_tuning: its virtual tokens are not part of a layer"),
        ([{"method": "none"}], "it trains nothing"),
        (
            [{"method": "lora", "share": 0.5}, {"method": "full", "share": 0.5}],
            "its stages follow each other, each on the model that the last one left",
        ),
    ],
)
def test_what_runs_alone_by_nature_says_why(stages, reason, world, workspace):
    trials = [config(world, *(stage(**one) for one in stages), seed=seed, steps=4) for seed in range(2)]
    results = run_pack(trials, workspace)
    assert [r.status for r in results] == ["complete"] * 2, results[0].reason
    assert [r.provenance.effective.alone for r in results] == [reason] * 2
    assert [r.cost.trained_with for r in results] == [1] * 2


def test_an_objective_with_a_trainer_of_its_own_runs_alone(world, workspace, monkeypatch):
    from harness.plugins import load

    monkeypatch.setattr(load("objectives", "sft"), "fuses", False)
    results = run_pack(four(world)[:2], workspace)
    assert [r.status for r in results] == ["complete"] * 2, results[0].reason
    assert {r.provenance.effective.alone for r in results} == {"objective sft trains with a trainer of its own"}


def test_quantised_trials_share_one_quantised_base(world, workspace, apart):
    trials = [
        config(world, stage("qlora", rank=rank, learning_rate=1e-3, quant_type=kind), seed=rank)
        for rank, kind in ((2, "nf4"), (8, "nf4"), (4, "fp4"))
    ]
    together = run_pack(trials, workspace)
    assert [r.cost.trained_with for r in together] == [2, 2, 1]
    assert_same(together, run_pack(trials, apart))


def test_scoring_that_fails_together_is_tried_one_by_one(world, workspace, monkeypatch):
    usual = Evaluator.evaluate

    def evaluate(self, models, *arguments, **options):
        if models.count > 1:
            raise ValueError("too wide")
        return usual(self, models, *arguments, **options)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    results = run_pack(four(world)[:2], workspace)
    assert [r.status for r in results] == ["complete"] * 2
    assert all("too wide" in r.provenance.effective.alone for r in results)


@pytest.mark.usefixtures("engine")
def test_scoring_that_fails_on_the_way_is_a_crash_that_keeps_its_cost(world, workspace, monkeypatch):
    def evaluate(*arguments, **options):
        raise ValueError("no answer")

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    result = run_trial(four(world, steps=6)[0], workspace)
    assert result.status == "crashed"
    assert "no answer" in result.reason
    assert result.cost.tokens > 0
    assert result.cost.flops > 0
    assert result.provenance.effective.stages[0].steps == 3


@pytest.mark.usefixtures("engine")
def test_a_score_that_is_not_finite_ends_a_trial_alone_there(world, workspace, monkeypatch):
    monkeypatch.setattr(Evaluator, "evaluate", lambda *arguments, **options: [Ended(TrialStatus.DIVERGED, "no score")])
    result = run_trial(four(world, steps=6)[0], workspace)
    assert (result.status, result.reason) == ("diverged", "no score")
    assert result.provenance.effective.stages[0].steps == 3
    assert result.cost.tokens > 0


def test_a_users_mistake_ends_the_pack(world, workspace):
    wrong = dataclasses.replace(four(world)[0], task=TaskRef("colour", "another"))
    with pytest.raises(SpecError, match="plan the study again"):
        run_pack([wrong, *four(world)[1:]], workspace)


def test_shares_add_up_and_solo_figures_are_what_training_alone_takes(world, workspace, apart, monkeypatch):
    """By a clock that only steps turn: 10 ms per token of a batch alone, 4 ms per token of each trial together."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def clocked(session, per_token):
        usual = session._step

        def step(self):
            before = sum(one.padded_tokens for one in self.learners)
            done = usual(self)
            now[0] += per_token * (sum(one.padded_tokens for one in self.learners) - before)
            return done

        monkeypatch.setattr(session, "_step", step)

    clocked(Alone, 0.010)
    clocked(Together, 0.004)
    process, started = WarmProcess(), now[0]
    together = run_pack(four(world, steps=8), workspace, process)
    passed = now[0] - started
    alone = run_pack(four(world, steps=8), apart)
    assert sum(r.cost.total_s for r in together) == pytest.approx(passed)
    assert len({r.cost.seconds["train"] for r in together}) == 1
    for mine, theirs in zip(together, alone, strict=True):
        assert mine.cost.solo_equivalent_s == pytest.approx(theirs.cost.seconds["train"])
        assert mine.cost.solo_s == pytest.approx(theirs.cost.total_s)
        assert theirs.cost.solo_equivalent_s is None
    # a second pack of the kind measures nothing: its trials' train seconds are of training together alone
    others = [dataclasses.replace(one, seed=one.seed + 10) for one in four(world, steps=8)]
    later = run_pack(others, workspace, process)
    wanted = 0.4 * sum(r.cost.solo_equivalent_s for r in later) / 4
    assert [r.cost.seconds["train"] for r in later] == [pytest.approx(wanted)] * 4


def test_an_interrupt_leaves_no_record(world, workspace, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Together, "optimizer_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_pack(four(world), workspace)
    assert not list(workspace.paths.results.rglob("record.json"))
