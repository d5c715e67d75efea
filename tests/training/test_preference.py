"""Preference objectives: what they show, what they compare with, what they refuse, and training together."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.study.family import stage_space
from harness.tasks.facts import TaskFacts
from harness.tasks.training_rows import Row
from harness.training import checkpoint, reference
from harness.training.choices import refusal
from harness.training.prepare import make_learner
from harness.trial.group import Workspace, run_pack
from harness.trial.packs import alike, alone_because
from tests.patience import THOROUGH
from tests.tiny import attached, config, stage, train
from tests.training.pairs import ROWS, made_up, ready

OBJECTIVES = ("dpo", "orpo", "kto")


def test_both_answers_are_tokenised_as_for_supervised_fine_tuning(world):
    one = ready(world.llama, stage("full", "dpo", learning_rate=1e-5), rows=ROWS[:5])
    for kind, name in ((0, "completion"), (1, "rejected")):
        rows = [replace(row, completion=getattr(row, name)) for row in ROWS[:5]]
        assert [(pair[kind],) for pair in one.examples] == ready(world.llama, stage("full"), rows=rows).examples


def test_orpo_imitates_prompts_too_and_kto_mismatches_neighbours(world):
    rows = [Row(prompt=f"{n}:", completion=n * 2, rejected=n * 3) for n in ("a", "b", "c")]
    one = ready(world.llama, stage("full", "orpo", learning_rate=1e-5), rows=rows)
    for chosen, rejected in one.examples:
        assert chosen.labels == chosen.input_ids
        assert rejected.labels[:2] == (-100, -100)
    one = ready(world.llama, stage("full", "kto", learning_rate=1e-5), rows=rows)
    shown = one.choices.objective.apart(one.examples, one.setup)
    text = one.setup.tokenizer.decode
    assert [tuple(text(s.input_ids) for s in pair) for pair in shown] == [
        ("a:cc<end>", "a:ccc<end>"),
        ("b:aa<end>", "b:aaa<end>"),
        ("c:bb<end>", "c:bbb<end>"),
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora", "dora", "ia3", "prefix_tuning"])
def test_training_starts_where_the_base_is(method, family, tmp_path, world):
    """No margin yet, so the loss is log 2; dropout of the base would make one. Virtual tokens are there from the start."""
    from tests.tiny import save_gpt2

    folder = world.llama if family == "llama" else save_gpt2(tmp_path, dropout=0.2)
    one, notes = attached(folder, stage(method, "dpo", learning_rate=1e-4), 2, ROWS)
    ((first, _),) = train(one)
    if method == "prefix_tuning":
        assert first != pytest.approx(math.log(2), abs=1e-5)
    else:
        assert first == pytest.approx(math.log(2), abs=1e-5)
    assert any("dropout" in note for note in notes) == (family == "gpt2")


def test_a_methods_own_dropout_stays(tmp_path):
    from tests.tiny import save_gpt2

    one = ready(save_gpt2(tmp_path, dropout=0.2), stage("lora", "dpo", learning_rate=1e-4, adapter_dropout=0.3))
    rates = {name: m.p for name, m in one.model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if "lora" in name} == {0.3}
    assert {rate for name, rate in rates.items() if "lora" not in name} == {0.0}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["lora", "ia3", "full"])
def test_only_what_the_method_trains_moves(method, objective, world):
    one = ready(world.llama, stage(method, objective, learning_rate=1e-4))
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    wanted = {name for name, p in one.model.named_parameters() if p.requires_grad}
    train(one)
    moved = {name for name, p in one.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert moved <= wanted
    assert all(p.grad is None for name, p in one.model.named_parameters() if name not in wanted)


FUSED = {
    "dpo": [{"beta": 0.1}, {"beta": 0.4, "label_smoothing": 0.2}, {"beta": 0.02}],
    "orpo": [{"odds_weight": 0.1}, {"odds_weight": 1.0}, {"odds_weight": 0.3}],
    "kto": [{"beta": 0.1}, {"beta": 0.4, "undesirable_weight": 1.5}, {"beta": 0.3, "desirable_weight": 0.5}],
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_together_is_alone(objective, family, world):
    """Trials with other parameters, ranks, dropout, rates, seeds, and rows."""
    stages = [
        stage("lora", objective, rank=rank, adapter_dropout=drop, learning_rate=rate, **params)
        for rank, drop, rate, params in zip(
            (2, 8, 4), (0.0, 0.1, 0.3), (1e-3, 2e-3, 5e-4), FUSED[objective], strict=True
        )
    ]

    def learners():
        folder = getattr(world, family)
        steps = 100 if THOROUGH and (objective, family) == ("dpo", "llama") else 20
        return [ready(folder, one, steps, made_up(30 + n, n), seed=n) for n, one in enumerate(stages)]

    alone = [curve for one in learners() for curve in train(one)]
    together = train(*learners())
    assert all(abs(curve[0] - curve[-1]) > 1e-3 for curve in alone)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_full_tuning_together_is_alone(objective, world):
    def learners():
        rates = (1e-5, 1e-4)
        stages = [stage("full", objective, learning_rate=rate) for rate in rates]
        return [ready(world.llama, one, 20, seed=n) for n, one in enumerate(stages)]

    alone = [curve for one in learners() for curve in train(one)]
    for ours, theirs in zip(train(*learners()), alone, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_continuation_compares_with_the_base_not_with_what_it_continues(objective, tmp_path, world):
    made = stage("full", objective, learning_rate=1e-4)

    def until(step):
        one = ready(world.llama, made, 6)
        return make_learner(one.model, one.rows, one.choices, one.setup, replace(one.watch, stop_at=step), {})

    (whole,) = train(until(6))
    first, second = until(3), until(6)
    (before,) = train(first)
    checkpoint.save(
        tmp_path / "rung",
        first,
        checkpoint.Progress(key="", step=3, curve=(), losses=(0.0, 0), train_seconds=0.0, tokens=0, total_s=0.0),
    )
    checkpoint.restore(tmp_path / "rung", second)
    (after,) = train(second)
    assert before + after == whole


def test_batches_of_a_step_add_up(world):
    def curve(**sizes):
        return train(ready(world.llama, stage("full", "dpo", learning_rate=1e-4, schedule="constant", **sizes)))[0]

    whole = curve(batch_size=8)
    assert curve(batch_size=2, gradient_accumulation=4) == pytest.approx(whole, abs=1e-5)


def test_the_base_is_asked_once_for_all_trials_of_a_process(world, monkeypatch):
    asked = []
    real = reference.supervised_nats
    monkeypatch.setattr(reference, "supervised_nats", lambda m, batch: asked.append(batch.rows) or real(m, batch))
    sums: reference.ReferenceSums = {}
    steps = 40  # of 4 pairs: all rows are reached

    def fresh(base, **params):
        one = ready(world.llama, stage("lora", "dpo", learning_rate=1e-4, **params), steps, seed=len(asked))
        asked.clear()
        one.setup = replace(one.setup, base=base)
        return reference.reference_of(one, sums)

    known = fresh("a", rank=2)
    assert sum(asked) == 80
    again = fresh("a", rank=8, beta=0.3)
    assert asked == []
    assert (known.examples == again.examples).all()
    for change in ({"precision": "bfloat16"}, {"max_length": 20}):
        fresh("a", **change)
        assert asked != []
    fresh("another")
    assert sum(asked) == 80
    monkeypatch.setattr(reference, "KEPT", 10)
    fresh("yet another")
    assert len(sums) == 10


def test_a_row_without_a_rejected_answer_is_refused(world):
    rows = [*ROWS[:3], Row(prompt="q", completion="a")]
    with pytest.raises(SpecError, match=r"must have a rejected answer .*row 4 of 4 \('q'\) has none: .*preference"):
        ready(world.llama, stage("full", "dpo", learning_rate=1e-5), rows=rows)


def test_what_cannot_be_compared_is_refused(world):
    with pytest.raises(SpecError, match=r"exo_pair must have a label_smoothing above 0, but got 0: set it"):
        ready(world.llama, stage("full", "dpo", learning_rate=1e-5, loss_type="exo_pair"))
    with pytest.raises(SpecError, match=r"mismatches the rows of a batch, but batch_size is 1: raise it"):
        ready(world.llama, stage("full", "kto", learning_rate=1e-5, batch_size=1))


def test_pairs_with_nothing_to_learn_are_dropped_whole(world):
    """Of an empty answer the end token is left, unless there is no such token."""
    rows = [
        *(Row(prompt="p" * 20, completion="c", rejected="r"),) * 3,
        Row(prompt="q", completion="c", rejected=""),
    ]
    one, notes = attached(world.llama, stage("full", "dpo", learning_rate=1e-5, max_length=12), 4, rows)
    assert len(one.examples) == 4
    assert notes == ["answers: of 8, 6 lose the beginning of their prompt, to fit 12 tokens"]
    endless = deepcopy(one.setup.tokenizer)
    endless.eos_token = None
    kept = one.choices.objective.examples(rows, replace(one.setup, tokenizer=endless))
    assert [len(pair) for pair in kept] == [2, 2, 2]
    assert notes[-1] == "1 of 4 training rows had nothing to learn and were dropped"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_task_without_preferences_is_refused_when_planning(objective, world):
    pipeline = config(world, stage("lora", objective, learning_rate=1e-4)).pipeline
    plain = Situation(task=TaskFacts(columns=("completion", "prompt")))
    assert "metadata.preference" in refusal(pipeline, plain)
    assert refusal(pipeline, Situation(task=TaskFacts(columns=("completion", "prompt", "rejected")))) is None
    assert refusal(pipeline, Situation()) is None
    elsewhere = config(world, stage("lora", objective, learning_rate=1e-4, data="manners")).pipeline
    assert refusal(elsewhere, plain) is None
    assert refusal(config(world).pipeline, plain) is None


def test_learning_rates_are_scaled_down_from_those_of_supervised_fine_tuning():
    def rate(method, objective):
        choices = {"method": method, "objective": objective, "retention": "none", "curation": "as_is"}
        return stage_space(choices)["learning_rate"]

    assert (rate("full", "sft").low, rate("full", "sft").default, rate("full", "sft").high) == (1e-6, 2e-5, 3e-3)
    assert (rate("full", "dpo").low, rate("full", "dpo").default, rate("full", "dpo").high) == (1e-7, 2e-6, 3e-4)
    assert (rate("lora", "kto").low, rate("lora", "kto").default, rate("lora", "kto").high) == (1e-6, 2e-5, 2e-3)
    assert rate("full", "orpo").default == 8e-6


def test_betas_may_differ_among_trials_that_train_together(world):
    def made(**params):
        return config(world, stage("lora", "dpo", learning_rate=1e-4, **params), task="manners")

    assert alone_because(made()) is None
    assert alike(made(beta=0.1)) == alike(made(beta=0.3, label_smoothing=0.1))
    assert alike(made()) != alike(made(loss_type="ipo"))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_pack_on_a_task_with_preferences(objective, tmp_path, world):
    trials = [
        config(world, stage("lora", objective, learning_rate=2e-3, rank=rank), task="manners", steps=8, seed=rank)
        for rank in (2, 8)
    ]
    for result in run_pack(trials, Workspace(Paths(tmp_path), (world.tasks,), device="cpu")):
        assert result.status is TrialStatus.COMPLETE, result.reason
        assert result.cost.trained_with == 2
        assert result.target.metric == "acc"


def test_after_another_stage_that_stages_model_is_the_reference(tmp_path, world):
    """Rates are too small to leave log 2, which a comparison with the pipeline's own base would."""
    first = stage("lora", learning_rate=1e-2, share=0.9)
    second = stage("lora", "dpo", data="manners", share=0.1, learning_rate=1e-6)
    trial = config(world, first, second, steps=40, fractions=(1.0,))
    (result,) = run_pack([trial], Workspace(Paths(tmp_path), (world.tasks,), device="cpu"))
    assert result.status is TrialStatus.COMPLETE, result.reason
    assert result.curve[-1].loss == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.shared
def test_real_preferences_are_learned(shared_data, world):
    """Polite against rude answers to the same instructions: margins rise within forty steps."""
    import json

    lines = (shared_data / "rasbt_preference" / "train.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines[:200]]
    rows = [Row(prompt=r["prompt"], completion=" " + r["chosen"], rejected=" " + r["rejected"]) for r in found]
    (curve,) = train(ready(world.llama, stage("lora", "dpo", learning_rate=2e-3, batch_size=8), 40, rows))
    assert curve[0] == pytest.approx(math.log(2), abs=1e-5)
    assert sum(curve[-10:]) / 10 < 0.6
