"""Forecasts and plans: numbers worked out by hand, and what rests on past trials."""

import json
import math
from dataclasses import replace

import pytest

from harness.analysis.power import detectable
from harness.driver.forecast import Occasion, forecast, read_past
from harness.driver.plan import plan_study
from harness.driver.reach import reaches
from harness.driver.trials import base_proposals
from harness.errors import SpecError
from harness.models.facts import ModelFacts
from harness.records.scale import Scale
from harness.records.trial import (
    CostRecord,
    Evaluation,
    Pipeline,
    Score,
    Stage,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
)
from harness.study.family import full_steps, resolved_families
from harness.study.spec import Prices
from tests.driver import standin


def test_counts_of_trials_follow_from_the_study(tmp_path):
    spec = standin.study(confirm={"finalists": 1, "seeds": 5})
    plan = plan_study(standin.experiment(spec, standin.site(tmp_path)))
    # 2 tasks x 2 splits; 2 tasks x 2 families x 3 trials; 2 tasks x 1 finalist x 5 seeds.
    assert [(phase.phase, phase.trials) for phase in plan.phases] == [("base", 4), ("search", 12), ("confirm", 10)]
    assert plan.trials == 26
    assert not (tmp_path / "results").exists()


def test_no_more_finalists_are_planned_than_there_are_families(tmp_path):
    spec = standin.study(confirm={"finalists": 5, "seeds": 3})
    plan = plan_study(standin.experiment(spec, standin.site(tmp_path)))
    assert plan.phases[2].trials == 2 * 2 * 3  # two tasks, both families, three seeds


def test_disk_is_that_of_records_and_of_the_test_items_that_are_scored(tmp_path):
    for limit, items in ((None, 10), (4, 4)):
        spec = standin.study(confirm={"finalists": 1, "seeds": 2, "limit": limit})
        plan = plan_study(standin.experiment(spec, standin.site(tmp_path)))
        # 4 base scores, 12 search trials and 4 runs of finalists; two tasks, each item of which takes 60 bytes.
        assert plan.disk_bytes == 20 * (12_000 + 2 * items * 60)


def test_workers_share_the_time(tmp_path):
    spec, options = standin.study(), {"workers": "4"}
    plan = plan_study(standin.experiment(spec, standin.site(tmp_path, "local", options=options)))
    assert plan.wall_s == pytest.approx(plan.hours * 3600 / 4)
    alone = plan_study(standin.experiment(spec, standin.site(tmp_path, options=options)))
    assert alone.wall_s == pytest.approx(alone.hours * 3600)  # this process runs one pack at a time


def test_the_base_is_scored_on_as_many_items_as_the_search_and_the_confirmation(tmp_path):
    spec = standin.study(tasks=["one"], search={"limit": 3}, confirm={"limit": 5})
    evaluations = [p.config.evaluation for p in base_proposals(standin.experiment(spec, standin.site(tmp_path)))]
    assert [(one.split, one.limit) for one in evaluations] == [("validation", 3), ("test", 5)]


def test_past_trials_of_the_same_task_say_more_than_those_of_others(tmp_path):
    from harness.records.results import write_result

    paths, target = standin.site(tmp_path).paths, occasion(tmp_path, steps=100)
    other = replace(target.config, task=TaskRef("two", "f"), steps=50)
    for config, seconds in ((other, 500.0), (replace(target.config, steps=50), 10.0)):
        cost = CostRecord(seconds={"train": seconds})
        write_result(paths, TrialResult(config=config, status=TrialStatus.COMPLETE, cost=cost))
    assert forecast(target, read_past(paths)).seconds == pytest.approx(20)  # 0.2 s a step
    paths.record(replace(target.config, steps=50).key).unlink()
    assert forecast(target, read_past(paths)).seconds == pytest.approx(1000)


def test_a_family_with_one_point_is_planned_with_one_trial(tmp_path):
    families = {"fixed": {"method": "none", "params": {"learning_rate": 0.01}}}
    spec = standin.study(families=families, tasks=["one"])
    plan = plan_study(standin.experiment(spec, standin.site(tmp_path)))
    assert plan.phases[1].trials == 1
    assert plan.phases[1].seconds == pytest.approx(plan.families["fixed"].seconds)


def test_of_base_scores_only_those_without_a_record_take_time(tmp_path):
    from harness.records.results import write_result

    experiment = standin.experiment(standin.study(), standin.site(tmp_path))
    recorded = next(base_proposals(experiment)).config
    cost = CostRecord(seconds={"evaluate": 5.0})
    write_result(experiment.paths, TrialResult(config=recorded, status=TrialStatus.COMPLETE, cost=cost))
    base = plan_study(experiment).phases[0]
    assert (base.trials, base.recorded) == (4, 1)
    assert base.seconds == pytest.approx(3 * 5.0 * 10)  # ten items each; one without scores counts as of one item


def test_the_smallest_detectable_difference_is_that_of_the_verdict(tmp_path):
    spec = standin.study(confirm={"finalists": 1, "seeds": 5})
    plan = plan_study(standin.experiment(spec, standin.site(tmp_path)))
    asked = len(spec.tasks) * len(spec.base_models)
    for one in plan.detectable:
        assert one.difference == detectable(families=2, runs=5, items=10, seed_sd=0.02, tasks=asked)
        assert "assumed" in one.basis
        assert "standard deviation 2.0 points" in one.basis


def test_what_can_be_detected_is_said_for_every_task_in_its_own_metric(tmp_path):
    spec = standin.study(confirm={"finalists": 1, "seeds": 2})
    experiment = standin.experiment(spec, standin.site(tmp_path))
    loss = replace(experiment.tasks[1], higher_is_better=False, scale=Scale(low=0.0))
    experiment = replace(experiment, tasks=(experiment.tasks[0], loss))
    plan = plan_study(experiment)
    # two seeds: t(.975; 1) = 12.7, so that even 10 items x sqrt(.5 / 10) of error need a difference beyond 1
    assert [one.task for one in plan.detectable] == ["one", "two"]
    assert plan.detectable[0].difference > 1
    assert plan.detectable[1].difference is None
    lines = plan.text().splitlines()
    assert "cannot tell families apart" in next(line for line in lines if line.startswith("  one"))
    assert "unknown before seed spread was measured" in next(line for line in lines if line.startswith("  two"))
    folder = tmp_path / "results" / "studies" / "past"
    members = confirmed(experiment, "two", [3.0, 3.2])
    folder.mkdir(parents=True)
    (folder / "members.jsonl").write_text("".join(json.dumps(member) + "\n" for member in members))
    again = plan_study(experiment)
    asked = len(spec.tasks) * len(spec.base_models)
    sd = math.sqrt(0.02)  # of 3.0 and 3.2
    assert again.detectable[1].difference == pytest.approx(
        detectable(families=2, runs=2, items=None, seed_sd=sd, tasks=asked)
    )
    assert again.detectable[0].basis == plan.detectable[0].basis


def confirmed(experiment, task, values):
    """Records of a family confirmed on a task, and their members."""
    from harness.records.results import write_result

    for repetition, value in enumerate(values):
        ref = next(one.ref for one in experiment.tasks if one.ref.name == task)
        pipeline = Pipeline(experiment.models[0].ref, (Stage(method="none", params={"learning_rate": 0.01}),))
        config = TrialConfig(pipeline=pipeline, task=ref, steps=9, seed=repetition, evaluation=Evaluation("test"))
        score = Score(
            task=task,
            split="test",
            metric="bits_per_byte",
            value=value,
            stderr=None,
            n=10,
            higher_is_better=False,
            comparability="same",
        )
        write_result(experiment.paths, TrialResult(config=config, status=TrialStatus.COMPLETE, scores=(score,)))
        yield {
            "key": config.key, "role": "confirm", "family": "a", "task": task, "base_model": "model",
            "repetition": repetition, "number": 0, "params": {}, "reused": False, "asked_at": "2026-11-22T10:00:00+00:00",
        }  # fmt: skip


def test_after_a_study_its_seeds_and_its_times_are_what_the_plan_rests_on(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_COST", "7")
    spec, site = standin.study(), standin.site(tmp_path)
    for phase in ("base", "search", "confirm"):
        standin.run(phase, spec, site)
    plan = plan_study(standin.experiment(spec, site))
    assert all("1 confirmed family" in one.basis for one in plan.detectable)
    assert all("past trials" in one.basis for one in plan.families.values())
    assert plan.families["a"].seconds == pytest.approx(7)
    assert plan.phases[0].recorded == 4
    assert plan.phases[0].seconds == 0


def test_the_plan_is_kept_as_it_was_before_the_first_trial(tmp_path):
    spec, site = standin.study(), standin.site(tmp_path)
    standin.run("base", spec, site)
    kept = site.paths.study(spec.name).plan.read_text()
    assert json.loads(kept)["families"]["a"]["basis"] == "formula"
    standin.run("search", spec, site)
    assert site.paths.study(spec.name).plan.read_text() == kept


def test_a_budget_that_funds_no_trial_is_refused_by_plan_and_search(tmp_path):
    spec, site = standin.study(budget={"gpu_seconds": 0.01, "steps": 1000}), standin.site(tmp_path)
    for action in (lambda: plan_study(standin.experiment(spec, site)), lambda: standin.run("search", spec, site)):
        with pytest.raises(SpecError, match=r"at least one trial per family, but 0\.01 s"):
            action()
    assert not list(tmp_path.glob("results/trials/*"))
    assert not site.paths.study(spec.name).spec.exists()  # so that the mended study may keep its name


def test_a_budget_in_seconds_gives_every_family_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("STANDIN_COST", "4")
    spec, site = standin.study(budget={"gpu_seconds": 10, "steps": 9}), standin.site(tmp_path)
    summary = standin.run("search", spec, site)
    # Trials of 4 s: two fit into 10 s, a third does not; two families on two tasks.
    assert summary.trials == 8


def occasion(tmp_path, steps=100, **changes):
    experiment = standin.experiment(standin.study(), standin.site(tmp_path))
    stage = Stage(method="none", params={"batch_size": 4, "gradient_accumulation": 2})
    config = TrialConfig(
        pipeline=Pipeline(experiment.models[0].ref, (stage,)), task=experiment.tasks[0].ref, steps=steps
    )
    model = replace(experiment.models[0], facts=ModelFacts(parameters=1_000_000))
    fields = {
        "config": config, "model": model, "tasks": {"one": experiment.tasks[0]},
        "gpu": None, "threads": 1, "prices": Prices(cpu_hour=3.6),
    }  # fmt: skip
    return Occasion(**(fields | changes))


def _score(n):
    """An accuracy of a half over so many items."""
    return Score(
        task="one",
        split="validation",
        metric="acc",
        value=0.5,
        stderr=None,
        n=n,
        higher_is_better=True,
        comparability="same",
    )


def test_the_formula_counts_six_flops_per_parameter_and_token(tmp_path):
    one = forecast(occasion(tmp_path), read_past(standin.site(tmp_path).paths))
    # 100 steps x 8 rows x 10 tokens (30 characters) x 6 x a million parameters.
    assert one.flops == pytest.approx(6e6 * 100 * 8 * 10)
    assert one.money == pytest.approx(one.seconds / 1000)


@pytest.mark.parametrize(
    ("gpu", "gpu_hour", "expected"),
    [
        ("default", {"default": 2.0}, 2.0 + 8 * 0.05),
        ("NVIDIA H100", {"NVIDIA H100": 3.0, "default": 2.0}, 3.0 + 8 * 0.05),
        ("NVIDIA H100", {"NVIDIA H100": 3.0}, 3.0 + 8 * 0.05),
        ("default", {"NVIDIA H100": 3.0}, None),
        (None, {"default": 2.0}, 8 * 0.05),
    ],
)
def test_a_plan_and_a_record_price_the_same_hour_alike(tmp_path, monkeypatch, gpu, gpu_hour, expected):
    """One hour on eight cores, which cost .05 an hour each: with a GPU its own price comes on top."""
    from harness.cost.flops import Size
    from harness.cost.meter import Meter, Tally
    from harness.cost.price import cost_record
    from harness.records.results import write_result

    prices, paths = Prices(cpu_hour=0.05, gpu_hour=gpu_hour), standin.site(tmp_path).paths
    target = occasion(tmp_path, gpu=gpu, threads=8, prices=prices)
    cost = CostRecord(seconds={"train": 3600.0})
    write_result(paths, TrialResult(config=target.config, status=TrialStatus.COMPLETE, cost=cost))
    plan = forecast(target, read_past(paths))
    assert plan.seconds == pytest.approx(3600)
    monkeypatch.setattr("harness.cost.price.gpu_name", lambda: gpu)
    meter = Meter("cpu")
    meter.device, meter.seconds["train"] = "cuda" if gpu else "cpu", 3600.0
    record = cost_record(meter, Tally(), Size(), prices, 8)
    assert plan.money == record.money == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("runner", "options", "expected"), [("slurm", {"gpus": "1"}, "default"), ("slurm", {}, None), ("local", {}, "H100")]
)
def test_the_gpu_is_known_before_a_trial_runs_only_on_this_machine(tmp_path, monkeypatch, runner, options, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("harness.runners.base.gpu_name", lambda: "H100")
    assert standin.site(tmp_path, runner, options=options, device="auto").gpu == expected


@pytest.mark.parametrize(
    ("gpu_hour", "said"),
    [
        ({"H100": 3.0}, "there is no price without prices.gpu_hour.default"),
        ({"H100": 3.0, "default": 2.0}, "its price is taken to be prices.gpu_hour.default"),
        ({"default": 2.0}, None),
    ],
)
def test_a_plan_says_that_it_does_not_know_the_gpu(tmp_path, gpu_hour, said):
    spec = standin.study(prices={"cpu_hour": 0.05, "gpu_hour": gpu_hour})
    site = standin.site(tmp_path, "slurm", options={"gpus": "1"}, device="auto")
    plan = plan_study(standin.experiment(spec, site))
    notes = [note for note in plan.notes if note.startswith("money")]
    assert [note.endswith(said or "") for note in notes] == [True] * (said is not None)
    assert [note for note in plan.notes if "set runner option gpu_gb" in note]
    assert (plan.money is None) is ("default" not in gpu_hour)


def test_past_trials_are_scaled_by_steps_and_by_scored_items(tmp_path):
    from harness.records.results import write_result

    paths, target = standin.site(tmp_path).paths, occasion(tmp_path, steps=100)
    past = replace(target.config, steps=50, evaluation=Evaluation(limit=5))
    score = _score(5)
    cost = CostRecord(seconds={"train": 10.0, "evaluate": 1.0}, peak_memory_bytes=7)
    write_result(paths, TrialResult(config=past, status=TrialStatus.COMPLETE, scores=(score,), cost=cost))
    one = forecast(target, read_past(paths))
    # 0.2 s a step for 100 steps; 0.2 s an item for the 10 validation items.
    assert one.seconds == pytest.approx(20 + 2)
    assert one.peak_memory_bytes == 7
    assert one.basis.startswith("1 past trial")


@pytest.mark.parametrize(
    ("limit", "fractions", "suite", "items"),
    # The task has 10 validation items, and is scored at every fraction; the suite once.
    [(None, (0.5, 1.0), 0, 20), (4, (1.0,), 0, 4), (4, (0.5, 1.0), 2, 16), (30, (1.0,), 1, 20)],
)
def test_what_is_scored_is_limited_items_at_every_fraction_and_the_suite_once(tmp_path, limit, fractions, suite, items):
    from harness.records.results import write_result

    paths, target = standin.site(tmp_path).paths, occasion(tmp_path)
    cost = CostRecord(seconds={"evaluate": 1.0})
    past = TrialResult(config=target.config, status=TrialStatus.COMPLETE, scores=(_score(5),), cost=cost)
    write_result(paths, past)
    evaluation = Evaluation(limit=limit, fractions=fractions, off_target=(target.config.task,) * suite)
    planned = replace(target, config=replace(target.config, evaluation=evaluation))
    assert forecast(planned, read_past(paths)).seconds == pytest.approx(0.2 * items)


def test_a_past_trial_of_a_pack_foretells_its_share_or_what_it_would_take_alone(tmp_path):
    from harness.records.results import write_result

    paths, target = standin.site(tmp_path).paths, occasion(tmp_path, steps=100)
    past = replace(target.config, steps=50)
    score = _score(10)
    cost = CostRecord(seconds={"train": 10.0, "evaluate": 2.0}, solo_equivalent_s=30.0, trained_with=8)
    write_result(paths, TrialResult(config=past, status=TrialStatus.COMPLETE, scores=(score,), cost=cost))
    # 0.2 s a step as its share, 0.6 s alone; 2 s for the same 10 items.
    assert forecast(target, read_past(paths)).seconds == pytest.approx(20 + 2)
    assert forecast(target, read_past(paths), alone=True).seconds == pytest.approx(60 + 2)


@pytest.mark.parametrize(
    ("budget", "params", "expected"),
    [
        ({"steps": 7}, {}, 7),
        ({"examples": 100}, {"batch_size": 8}, 13),
        ({"epochs": 2}, {"batch_size": 8, "gradient_accumulation": 2}, 12),  # 180 rows, 16 a step: 11.25
        ({"epochs": 0.001}, {"batch_size": 8}, 1),
    ],
)
def test_steps_come_from_steps_examples_or_epochs(budget, params, expected):
    spec = standin.study(budget={"trials": 1} | budget, families={"a": {"method": "none", "params": params}})
    assert full_steps(spec.budget, resolved_families(spec)["a"], 90, {}) == expected


def test_a_plan_says_which_weights_methods_reach(tmp_path):
    """Of 100 numbers 10 are embeddings, 20 linear layers and 70 experts, which DoRA does not reach."""
    facts = ModelFacts(parts={"tables": 10, "attention": 12, "mlp": 8, "experts": 70}, parameters=100)
    families = {name: {"method": name} for name in ("full", "lora", "dora", "prompt_tuning", "ia3")}
    experiment = standin.experiment(standin.study(families=families), standin.site(tmp_path))
    mixture = replace(experiment.models[0], facts=facts)
    found = {one.family: one for one in reaches(replace(experiment, models=(mixture,)))}
    assert {name: one.shares for name, one in found.items()} == {
        "full": (1.0,), "lora": (0.9,), "dora": (0.2,), "prompt_tuning": (0.0,), "ia3": (None,),
    }  # fmt: skip
    named = mixture.ref.name
    assert found["dora"].text() == f"dora on {named}: about 20%; experts are no linear layers, and 70% stay"
    assert found["lora"].text() == f"lora on {named}: about 90%"
    assert found["prompt_tuning"].text() == f"prompt_tuning on {named}: none, what it trains is beside them"
    assert found["ia3"].text() == f"ia3 on {named}: unknown before it runs"
    assert "about 90%" not in plan_study(experiment).text()  # of a base without such headers nothing is claimed
