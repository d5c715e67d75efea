"""A trial that is interrupted goes on in another process, and nobody can tell from its result."""

import dataclasses
import itertools
import multiprocessing
import os
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from harness.cost.meter import Meter
from harness.evaluation.evaluate import Evaluator
from harness.records.paths import Paths
from harness.records.results import find_result
from harness.records.trial import TrialStatus
from harness.training import leaving
from harness.training.alone import Alone
from harness.training.session import Session
from harness.trial import midway
from harness.trial.accounts import Accounts
from harness.trial.group import Workspace, run_pack, run_trial
from harness.trial.run import Run
from tests.tiny import config, save_gpt2, stage

FORK = multiprocessing.get_context("fork")
USR2 = 128 + signal.SIGUSR2


@pytest.fixture
def workspace(world, tmp_path):
    """Every step could be a checkpoint's."""
    return Workspace(Paths(tmp_path / "results"), (world.tasks,), device="cpu", keep_model=True)


@pytest.fixture
def apart(workspace, tmp_path):
    """Where trials run without interruption."""
    return dataclasses.replace(workspace, paths=Paths(tmp_path / "apart"))


def attempt(trials, workspace, at=None, how=signal.SIGUSR2, inside=Session, call="_step", limit=None):
    """Run a pack in a process of its own, as a worker does.

    Args:
        trials: The pack.
        workspace: Where it runs.
        at: In which call, counting from 1, the process gets a signal.
        how: The signal.
        inside: The class whose method is counted.
        call: The method.
        limit: Bytes of the largest file that the process may write.

    Returns:
        Its exit status.
    """

    def life():
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGUSR2, leaving.ask)
        usual, counter = getattr(inside, call), itertools.count(1)

        def counted(self, *args, **options):
            if next(counter) == at:
                os.kill(os.getpid(), how)
            return usual(self, *args, **options)

        setattr(inside, call, counted)
        run_pack(trials, workspace)

    child = FORK.Process(target=life)
    child.start()
    child.join()
    return child.exitcode


def values(result):
    return [(score.task, score.value, score.stderr, score.n) for score in result.scores]


def curve(result):
    return [(p.fraction, p.step, p.tokens, p.loss, p.score) for p in result.curve]


def counted(result):
    cost = result.cost
    return cost.tokens, cost.supervised_tokens, cost.flops, cost.trainable_params, cost.total_params


def settings(result):
    """What ran, without the folder of a base that an earlier stage made, which is another one each time."""
    stages = result.provenance.effective.stages
    bases = {"base_model_name_or_path": None}
    return [
        dataclasses.replace(one, adapter={name: dict(adapter) | bases for name, adapter in one.adapter.items()})
        for one in stages
    ]


def weights(workspace, key):
    return load_file(workspace.paths.model(key) / "model.safetensors")


def assert_same(trial, interrupted, straight):
    """Weights, scores, learning curve and what is counted are the same to the bit."""
    ours, theirs = (find_result(place.paths, trial.key) for place in (interrupted, straight))
    assert ours.status == theirs.status == TrialStatus.COMPLETE, ours.reason
    assert values(ours) == values(theirs)
    assert curve(ours) == curve(theirs)
    assert counted(ours) == counted(theirs)
    assert ours.notes == theirs.notes
    left, right = weights(interrupted, trial.key), weights(straight, trial.key)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert settings(ours) == settings(theirs)
    assert not interrupted.paths.midway(trial.key).exists()
    return ours


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trial_that_is_asked_to_leave_over_and_over_ends_as_one_left_in_peace(
    method, world, workspace, apart, tmp_path
):
    """At its first step, in the step before a pause, after one, and in its last."""
    model = save_gpt2(tmp_path / "noisy", dropout=0.1)
    trial = config(world, stage(method, batch_size=2, gradient_accumulation=2), model=model, fractions=(0.5, 1.0))
    run_trial(trial, apart)
    reached = []
    for at in (1, 2, 1, 2):
        assert attempt([trial], workspace, at) == USR2
        (found,) = workspace.paths.midway(trial.key).iterdir()
        reached.append(found.name)
    assert [int(name.removeprefix("0-")) for name in reached] == [1, 3, 4, 6]
    assert attempt([trial], workspace) == 0
    ours = assert_same(trial, workspace, apart)
    assert ours.provenance.effective.resumed.steps == (1, 3, 4, 6)


def test_trials_that_train_together_go_on_together(world, workspace, apart):
    """One has done its steps when the others are interrupted; two calls measure what a trial takes alone."""
    trials = [
        config(world, stage("lora", rank=rank, learning_rate=rate), steps=8, fractions=(0.5, 1.0)).at(fidelity)
        for rank, rate, fidelity in ((4, 1e-3, 0.25), (4, 2e-3, 1.0), (4, 3e-3, 1.0))
    ]
    run_pack(trials, apart)
    assert attempt(trials, workspace, 2 + 3) == USR2
    assert attempt(trials, workspace) == 0
    results = [assert_same(trial, workspace, apart) for trial in trials]
    assert [result.provenance.effective.resumed.steps for result in results] == [(2,), (3,), (3,)]
    for result in results:
        assert result.cost.trained_with == 3
        assert 0 < result.provenance.effective.resumed.seconds < result.cost.total_s


def test_a_trial_of_a_group_may_go_on_alone(world, workspace, apart):
    """Its losses are those of training alone within the bound that together and alone have anyway."""
    trials = [config(world, stage("lora", learning_rate=rate), steps=8) for rate in (1e-3, 3e-3)]
    run_trial(trials[0], apart)
    assert attempt(trials, workspace, 3 + 5) == USR2
    (saved,) = workspace.paths.midway(trials[0].key).iterdir()
    assert attempt(trials[:1], workspace) == 0
    ours, theirs = (find_result(place.paths, trials[0].key) for place in (workspace, apart))
    assert [p.loss for p in ours.curve] == pytest.approx([p.loss for p in theirs.curve], abs=1e-5)
    assert counted(ours) == counted(theirs)
    resumed = ours.provenance.effective.resumed
    assert resumed.steps == (int(saved.name.removeprefix("0-")),)
    assert ours.cost.trained_with == 2
    alone = ours.cost.solo_equivalent_s
    assert (
        alone > ours.cost.seconds["train"] - resumed.seconds
    )  # what it did alone, and the steps before at their price


@pytest.mark.parametrize("at", [2, 5])
def test_a_pipeline_goes_on_in_the_stage_that_it_was_in(at, world, workspace, apart):
    """Three steps each; the model that the first stage made is kept for the second."""
    stages = (stage("full", share=0.5), stage("lora", share=0.5))
    trial = config(world, *stages, fractions=(0.5, 1.0))
    run_trial(trial, apart)
    assert attempt([trial], workspace, at) == USR2
    saved = {path.name for path in workspace.paths.midway(trial.key).iterdir()}
    assert saved == ({"0-000000002"} if at == 2 else {"1-000000002", "1-inputs"})
    assert attempt([trial], workspace) == 0
    assert assert_same(trial, workspace, apart).provenance.effective.resumed.steps == (at,)


def test_what_an_early_stage_left_beside_the_model_is_there_for_a_later_one(world, workspace, apart):
    """Interrupted in the second stage and again in the third, which trains in a loop of TRL's and starts anew."""
    pipeline = (
        stage("lora", "reward_model", share=1 / 3),
        stage("full", share=1 / 3),
        stage("lora", "rloo", share=1 / 3, batch_size=4, generations=2),
    )
    trial = config(world, *pipeline, task="manners", fractions=(1.0,))
    run_trial(trial, apart)
    assert attempt([trial], workspace, 1) == USR2
    assert attempt([trial], workspace) == 0
    assert_same(trial, workspace, apart)


@pytest.fixture
def often(workspace, monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr("harness.trial.midway.LARGEST_SHARE", float("inf"))
    return dataclasses.replace(workspace, checkpoint_s=0.0)


def test_a_killed_trial_goes_on_from_its_last_checkpoint_and_there_is_never_more_than_one(world, often, apart):
    """Killed in a step, and while it writes: what was whole stays, and nothing else is read."""
    trial = config(world, stage("full"), fractions=(0.5, 1.0))
    run_trial(trial, apart)
    assert attempt([trial], often, 4, signal.SIGKILL) == -signal.SIGKILL
    assert [path.name for path in often.paths.midway(trial.key).iterdir()] == ["0-000000003"]
    assert attempt([trial], often, 8, signal.SIGKILL, os, "fsync") == -signal.SIGKILL
    names = {path.name for path in often.paths.midway(trial.key).iterdir()}
    assert len(names) == 2
    assert min(names).startswith(".building")
    assert attempt([trial], often) == 0
    ours = assert_same(trial, often, apart)
    assert ours.provenance.effective.resumed.steps[0] == 3


def test_a_second_signal_ends_it_at_once(world, workspace, monkeypatch):
    monkeypatch.setattr(leaving, "ECHO_S", -1.0)
    monkeypatch.setattr(Alone, "keep", lambda self: os.kill(os.getpid(), signal.SIGUSR2))
    trial = config(world, stage("lora"))
    assert attempt([trial], workspace, 2) == USR2
    assert not workspace.paths.midway(trial.key).exists()


def test_a_trial_is_saved_where_its_scoring_was_interrupted(world, workspace, apart):
    trial = config(world, stage("lora"), fractions=(0.5, 1.0))
    run_trial(trial, apart)
    assert attempt([trial], workspace, 1, inside=Evaluator, call="evaluate") == USR2
    assert attempt([trial], workspace) == 0
    assert assert_same(trial, workspace, apart).provenance.effective.resumed.steps == (3,)


def test_a_rung_that_is_interrupted_goes_on_and_so_does_its_continuation(world, workspace, apart):
    trial, places = (
        config(world, stage("lora")),
        [dataclasses.replace(p, keep_checkpoint=True) for p in (workspace, apart)],
    )
    for fidelity in (0.5, 1.0):
        run_trial(trial.at(fidelity), places[1])
        assert attempt([trial.at(fidelity)], places[0], 2) == USR2
        assert attempt([trial.at(fidelity)], places[0]) == 0
        ours = assert_same(trial.at(fidelity), *places)
    assert ours.provenance.effective.resumed.steps == (5,)
    assert ours.provenance.effective.inherited.key == trial.at(0.5).key


@pytest.fixture(scope="module")
def left(world, tmp_path_factory):
    """What a trial has left that was interrupted in its second step, and the trial."""
    folder, trial = tmp_path_factory.mktemp("left"), config(world, stage("lora"))
    assert attempt([trial], Workspace(Paths(folder), (world.tasks,), device="cpu"), 2) == USR2
    return folder, trial


def opened(left, workspace, **changes):
    """The trial again, before it has looked for a checkpoint, and the checkpoint."""
    folder, trial = left
    shutil.copytree(folder, workspace.paths.results)
    (saved,) = workspace.paths.midway(trial.key).iterdir()
    meter = Meter(changes.pop("device", "cpu"))
    run = Run(config=trial, workspace=workspace, process=None, accounts=Accounts(meter=meter))
    return run, saved


def damage(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: damage(folder / "moved.safetensors"),
        lambda folder: damage(folder / "digests.json"),
        lambda folder: (folder / "moments.safetensors").unlink(),
        lambda folder: (folder / "standing.json").write_text("{"),
        lambda folder: (folder / "more").touch(),
        lambda folder: (folder / "progress.json").chmod(0) or os.truncate(folder / "progress.json", 10),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_not_used(harm, left, workspace):
    run, saved = opened(left, workspace)
    harm(saved)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert midway.find(run) is None
    assert run.notes == ["a checkpoint after step 2 of stage 1 was not used, since it is damaged"]
    assert run.meter.total_s == 0
    assert not saved.parent.exists()
    aside, why = sorted(workspace.paths.quarantined_folder("").iterdir())
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert "since it is damaged: delete it when you have seen it" in why.read_text()
    assert workspace.paths.quarantined() == []  # that has records, which the database names


def test_a_damaged_checkpoint_that_cannot_be_set_aside_stops_no_trial(left, workspace):
    run, saved = opened(left, workspace)
    damage(saved / "moved.safetensors")
    workspace.paths.quarantined_folder("").write_text("in the way")
    assert midway.find(run) is None
    assert not saved.parent.exists()


def test_a_checkpoint_that_is_whole_is_found_with_what_was_spent(left, workspace):
    run, saved = opened(left, workspace)
    found = midway.find(run)
    assert found.folder == saved
    assert 0 < run.meter.total_s == pytest.approx(sum(found.standing.spent.seconds.values()))
    again = dataclasses.replace(run, accounts=Accounts(meter=run.meter))
    midway.find(again)  # trials that are split start anew, with the meter that they had
    assert again.meter.total_s == pytest.approx(run.meter.total_s)


@pytest.mark.parametrize("other", ["code", "trial", "device"])
def test_a_checkpoint_of_something_else_is_removed_and_not_used(other, left, workspace, monkeypatch):
    """What other code took for the same trial on the same kind of device stays in the trial's cost."""
    run, saved = opened(left, workspace, device="cuda" if other == "device" else "cpu")
    spent = sum(midway._standing(saved).spent.seconds.values())
    if other == "code":
        monkeypatch.setattr(midway, "code_version", lambda config: "other")
    if other == "trial":
        run.config = dataclasses.replace(run.config, seed=1)
        shutil.copytree(saved.parent, workspace.paths.midway(run.config.key))
    assert midway.find(run) is None
    assert not workspace.paths.midway(run.config.key).exists()
    (note,) = run.notes
    assert "was not used, since " in note
    assert run.meter.total_s == pytest.approx(spent if other == "code" else 0)


def test_a_disk_that_refuses_stops_no_trial(world, often, apart):
    """The system refuses files above 100 kB: that of the weights fails in the middle."""
    place = dataclasses.replace(often, keep_model=False)
    trial = config(world, stage("full"))
    run_trial(trial, apart)
    assert attempt([trial], place, limit=100_000) == 0
    ours = find_result(place.paths, trial.key)
    assert values(ours) == values(find_result(apart.paths, trial.key))
    assert [note.split(":")[0] for note in ours.notes if "saved" in note] == [f"after 1 steps {midway.UNSAVED}"]


def test_a_disk_without_room_is_not_filled(world, often, monkeypatch):
    """Weights and two moments in float32, and room for records."""
    usage = shutil.disk_usage("/")
    trial = config(world, stage("lora", rank=4), steps=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    (note,) = [note for note in run_trial(trial, often).notes if midway.UNSAVED in note]
    numbers = find_result(often.paths, trial.key).cost.trainable_params
    assert note.endswith(f": it needs {3 * 4 * numbers} bytes, and 10 are free on its disk")
