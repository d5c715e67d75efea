"""Packs: what may train together, what must not and why, and how trials are cut so that no worker idles at the end."""

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.methods.base import Method
from harness.objectives.base import Objective
from harness.plugins import load
from harness.records.trial import Evaluation, ModelRef, Pipeline, Stage, TaskRef, TrialConfig
from harness.retention.base import Retention
from harness.trial import packs
from harness.trial.packs import alike, alone_because, cut, portion


def trial(method="lora", seed=0, steps=10, model="m", stages=1, task="t", **stage):
    params = {"learning_rate": 1e-3} | stage.pop("params", {})
    one = Stage(method=method, params=params, share=1 / stages, **stage)
    return TrialConfig(
        pipeline=Pipeline(ModelRef(model, "r"), (one,) * stages), task=TaskRef(task, "f"), steps=steps, seed=seed
    )


def test_trials_of_one_family_can_train_together():
    assert alone_because(trial()) is None
    assert alone_because(trial("full")) is None
    assert alone_because(trial(retention="replay")) is None
    assert alone_because(trial(objective="continued_pretraining")) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (trial(stages=2), "stages follow each other"),
        (trial("none"), "trains nothing"),
        (trial(steps=0), "trains nothing"),
    ],
)
def test_what_must_run_alone_says_why(config, reason):
    assert reason in alone_because(config)


class _Base:
    """What a plug-in may be put in place of, one hook changed."""

    needs_training, alone, same, space, fuses = True, "", (), {}, True
    optimizer, penalty, before_step, after_step = (
        Method.optimizer,
        Method.penalty,
        Method.before_step,
        Method.after_step,
    )
    after_backward, before_update = Method.after_backward, Method.before_update


class _Held:
    """The same of a retention."""

    penalty, finish, space = Retention.penalty, Retention.finish, {}


@pytest.mark.parametrize(
    ("folder", "change", "reason"),
    [
        ("methods", {"alone": "it moves by itself"}, "method lora: it moves by itself"),
        ("methods", {"optimizer": lambda *args: None}, "method lora brings an optimiser"),
        ("methods", {"after_step": lambda *args: None}, "method lora acts on the whole model"),
        ("objectives", {"fuses": Objective.fuses}, "objective sft trains with a trainer of its own"),
        ("retention", {"penalty": lambda *args: None}, "retention none adds a term"),
        ("retention", {"finish": lambda *args: None}, "retention none changes the trained weights"),
    ],
)
def test_a_plug_in_that_acts_by_itself_runs_alone_whatever_its_name(monkeypatch, folder, change, reason):
    changed = type("Changed", (_Base if folder != "retention" else _Held,), change)
    monkeypatch.setattr(packs, "load", lambda where, name: changed if where == folder else load(where, name))
    assert reason in alone_because(trial())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 20},
        {"params": {"learning_rate": 1e-2}},
        {"params": {"rank": 4}},
        {"params": {"alpha": 8.0}},
        {"params": {"adapter_dropout": 0.1}},
        {"params": {"schedule": "linear"}},
        {"params": {"warmup_share": 0.2}},
        {"params": {"weight_decay": 0.1}},
        {"params": {"max_grad_norm": 0.5}},
    ],
)
def test_what_may_differ_in_a_pack(change):
    assert alike(trial(**change)) == alike(trial())


@pytest.mark.parametrize(
    "change",
    [
        {"method": "dora"},
        {"model": "other"},
        {"task": "other"},
        {"objective": "continued_pretraining"},
        {"retention": "replay"},
        {"data": "other"},
        {"data_fingerprint": "other"},
        {"params": {"batch_size": 8}},
        {"params": {"gradient_accumulation": 2}},
        {"params": {"max_length": 64}},
        {"params": {"precision": "bfloat16"}},
        {"params": {"target": "attention"}},
    ],
)
def test_what_must_be_equal_in_a_pack(change):
    assert alike(trial(**change)) != alike(trial())


def test_fidelity_may_differ_and_the_evaluation_may_not():
    assert alike(trial().at(1 / 3)) == alike(trial())
    assert alike(replace(trial(), evaluation=Evaluation(limit=5))) != alike(trial())


def test_a_default_that_is_written_down_is_the_same_as_one_that_is_not():
    assert alike(trial(params={"target": "all", "batch_size": 16})) == alike(trial())


def test_rows_may_differ_since_each_trial_draws_its_own():
    shares = [alike(trial(retention="replay", params={"replay_share": share})) for share in (0.1, 0.2)]
    assert shares[0] == shares[1]


def sizes(found):
    return [len(pack) for pack in found]


def trials(count, **changes):
    return [trial(seed=seed, **changes) for seed in range(count)]


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [
        (8, 1, [8]),
        (8, 2, [4, 4]),
        (10, 2, [5, 5]),
        (9, 2, [5, 4]),
        (20, 2, [5, 5, 5, 5]),
        (32, 2, [8, 8, 8, 8]),
        (40, 2, [7, 7, 7, 7, 6, 6]),
        (5, 5, [1] * 5),
        (9, 1, [5, 4]),
        (0, 2, []),
    ],
)
def test_alike_trials_are_cut_so_that_all_workers_end_together(count, workers, expected):
    assert sorted(sizes(cut(trials(count), workers, 8)), reverse=True) == expected


def test_groups_are_not_cut_finer_than_the_workers_need():
    families = trials(3) + trials(3, method="dora") + trials(3, task="other")
    # On two workers three packs of 3 would end after 6; with one of them cut, after 5 of the 9.
    assert sizes(cut(families, 2, 8)) == [3, 3, 2, 1]
    assert sizes(cut(families, 1, 8)) == [3, 3, 3]
    assert sizes(cut(trials(8) + trials(8, task="other") + trials(1, method="dora"), 2, 8)) == [8, 8, 1]


def test_what_already_runs_counts_as_work_of_its_worker():
    assert sizes(cut(trials(4), 2, 8, busy=[4])) == [4]
    assert sizes(cut(trials(4), 2, 8, busy=[4, 4])) == [2, 2]
    assert sizes(cut(trials(4), 2, 8)) == [2, 2]


def test_trials_that_must_run_alone_are_packs_of_one_and_order_is_kept():
    alone = trials(2, method="none")
    found = cut([alone[0], *trials(3), alone[1]], 1, 8)
    assert [[config.seed for config in pack] for pack in found] == [[0, 1, 2], [0], [1]]


def test_packs_of_a_base_model_follow_each_other():
    found = cut(trials(1, model="a") + trials(4, model="b") + trials(2, model="a", task="other"), 1, 8)
    assert [(pack[0].pipeline.base_model.name, len(pack)) for pack in found] == [("a", 2), ("a", 1), ("b", 4)]


kinds = st.lists(st.tuples(st.sampled_from(["lora", "dora", "none"]), st.integers(0, 3)), max_size=30)


@settings(max_examples=60)
@given(asked=kinds, workers=st.integers(1, 6), largest=st.integers(1, 9), busy=st.lists(st.integers(1, 9), max_size=4))
def test_every_trial_is_in_one_pack_of_its_kind(asked, workers, largest, busy):
    configs = [trial(method, seed=seed, task=f"t{kind}") for seed, (method, kind) in enumerate(asked)]
    found = cut(configs, workers, largest, busy)
    assert sorted(config.seed for pack in found for config in pack) == list(range(len(configs)))
    for pack in found:
        assert len(pack) <= largest
        assert len({alike(config) for config in pack}) == 1
        assert len(pack) == 1 or pack[0].pipeline.stages[0].method != "none"
        assert [config.seed for config in pack] == sorted(config.seed for config in pack)


def test_the_next_pack_is_as_large_as_it_can_be_while_the_last_ones_come_out_even():
    # 40 trials, two workers, packs of 8: three rounds of two packs, of which each takes a sixth.
    assert [portion(left, 2, 8) for left in (40, 32, 16, 8, 1, 0)] == [7, 8, 8, 4, 1, 1]


def test_packs_are_cut_without_torch():
    code = (
        "import sys\nfrom tests.trial.test_packs import cut, trials\n"
        "assert len(cut(trials(9), 2, 4)) == 4\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
