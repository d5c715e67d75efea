"""What goes wrong in a trial ends as a record that names the cause, keeps the cost, and has no score."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.errors import SpecError
from harness.records.codec import to_json
from harness.records.paths import Paths
from harness.records.results import read_result
from harness.records.trial import Evaluation, TaskRef, TrialStatus
from harness.training.alone import Alone
from harness.trial.group import Workspace, run_trial
from tests.tiny import config, save_gpt2, save_llama, stage, task_ref


@pytest.fixture
def workspace(world, tmp_path):
    return Workspace(Paths(tmp_path), (world.tasks,), device="cpu")


def recorded(workspace, result):
    """The record as it stands on disk, which must be what was returned."""
    on_disk = read_result(workspace.paths.record(result.config.key))
    assert on_disk.status == result.status
    assert on_disk.scores == ()
    assert all(point.score is None for point in on_disk.curve)
    assert not workspace.paths.items(result.config.key).exists()
    return on_disk


def test_a_loss_that_is_not_finite_is_diverged(world, workspace):
    """Activations of 3e38 overflow float32 at the first product."""
    broken = workspace.paths.results / "broken"
    shutil.copytree(world.llama, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    result = run_trial(config(world, model=broken), workspace)
    assert result.status == "diverged"
    assert "step 1" in result.reason
    assert "lower the learning rate" in result.reason
    assert recorded(workspace, result).cost.seconds["train"] > 0


def test_a_trial_that_takes_too_long_is_timed_out(world, workspace):
    result = run_trial(config(world, steps=500), dataclasses.replace(workspace, time_limit_s=1.5))
    assert result.status == "timed_out"
    assert "1.5 s" in result.reason
    cost = recorded(workspace, result).cost
    assert 1.5 <= cost.total_s < 30
    assert cost.tokens > 0
    assert cost.flops > 0


def test_an_error_of_a_library_is_a_crash_with_a_traceback(world, workspace, monkeypatch):
    def broken(*arguments, **options):
        raise IndexError("index out of range in self")

    monkeypatch.setattr("harness.evaluation.evaluate.Evaluator.evaluate", broken)
    result = run_trial(config(world), workspace)
    assert result.status == "crashed"
    assert result.reason.startswith("IndexError: index out of range in self (in ")
    recorded(workspace, result)
    assert "Traceback" in workspace.paths.traceback(result.config.key).read_text()


def test_a_failure_is_not_run_again(world, workspace):
    limited = dataclasses.replace(workspace, time_limit_s=0.0)
    first = run_trial(config(world), limited)
    assert first.status == "timed_out"
    assert run_trial(config(world), workspace).status == "timed_out"


OOM = """
import resource, sys
from pathlib import Path
from harness.records.paths import Paths
from harness.records.codec import decode
from harness.records.trial import TrialConfig
from harness.trial.group import run_trial
from harness.trial.workspace import Workspace
import json, torch, trl, peft, lm_eval, harness.evaluation.evaluate, datasets

config = decode(TrialConfig, json.loads(Path(sys.argv[1]).read_text()))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26),) * 2)
result = run_trial(config, Workspace(Paths(Path(sys.argv[2])), (Path(sys.argv[3]),), device="cpu"))
print(result.status, result.reason, sep="|")
"""


@pytest.mark.thorough
def test_running_out_of_memory_is_told_apart(world, workspace, tmp_path):
    """A real one: a process that may use 64 MiB more, and long rows of which one alone, with layers computed again, takes more."""
    rows = [{"word": "red " * 2000, "number": i, "answer": 0, "text": ""} for i in range(16)]
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for split in ("train", "validation", "test"):
        (tasks / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tasks / "colour.yaml").write_text((world.tasks / "colour.yaml").read_text())
    folder = save_llama(tmp_path / "long")
    settings = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 8192}
    (folder / "config.json").write_text(json.dumps(settings))
    trial = config(
        dataclasses.replace(world, tasks=tasks), stage("full", batch_size=16, max_length=8192), model=folder, steps=2
    )
    (tmp_path / "config.json").write_text(json.dumps(to_json(trial)))
    command = [sys.executable, "-c", OOM, tmp_path / "config.json", tmp_path / "results", tasks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    status, reason = done.stdout.strip().splitlines()[-1].split("|")
    assert status == "out_of_memory", reason
    assert "memory" in reason


@pytest.fixture
def scarce(monkeypatch):
    """Memory for activations that are computed again, and not for those that are kept: refused in a step's second pass."""
    usual = Alone.forward

    def forward(self, batch, seeds):
        (one,) = self.learners
        if one.step == 2 and not seeds and not one.model.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return usual(self, batch, seeds)

    monkeypatch.setattr(Alone, "forward", forward)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trial_short_of_memory_goes_on_without_keeping_activations(method, world, workspace, tmp_path, scarce):
    """Dropout makes it matter that activations are computed again with the same random numbers."""
    model = save_gpt2(tmp_path / "noisy", dropout=0.1)
    trial = config(world, stage(method, batch_size=2, gradient_accumulation=2), model=model, fractions=(0.5, 1.0))
    spared = run_trial(trial, workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Alone, "forward", Alone.forward.__closure__[0].cell_contents)
        plenty = run_trial(trial, dataclasses.replace(workspace, paths=Paths(tmp_path / "plenty")))
    assert spared.status == plenty.status == "complete", spared.reason
    assert [note for note in spared.notes if "computed again" in note]
    assert spared.provenance.effective.stages[0].recomputes is True
    assert [p.loss for p in spared.curve] == pytest.approx([p.loss for p in plenty.curve], abs=1e-5)
    assert spared.cost.tokens == plenty.cost.tokens
    assert spared.cost.flops == plenty.cost.flops


def test_a_trial_that_cannot_do_without_memory_is_out_of_it(world, workspace, monkeypatch):
    def forward(self, batch, seeds):
        raise torch.OutOfMemoryError("tried to allocate too much")

    monkeypatch.setattr(Alone, "forward", forward)
    result = run_trial(config(world), workspace)
    assert result.status == "out_of_memory"
    assert "tried to allocate too much" in recorded(workspace, result).reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": TaskRef("colour", "another")}, "plan the study again"),
        ({"task": TaskRef("color", "")}, "color"),
        ({"evaluation": Evaluation(off_target=(TaskRef("echo", "another"),))}, "plan the study again"),
    ],
)
def test_a_users_mistake_is_no_record(changes, message, world, workspace):
    with pytest.raises(SpecError, match=message):
        run_trial(dataclasses.replace(config(world), **changes), workspace)
    assert not list(workspace.paths.results.rglob("record.json"))


@pytest.mark.parametrize(
    "named",
    [
        {"data": "echo"},
        {"curation": "mixing", "pools": "echo@another=2"},
        {"retention": "dare", "merge_with": "tiny-1m@another"},
    ],
)
def test_what_a_stage_names_must_be_what_was_planned_with(named, world, workspace):
    """Before anything is trained: a record would have the key of what was planned."""
    made = dataclasses.replace(stage("full", **named), data_fingerprint="another" if "data" in named else "")
    with pytest.raises(SpecError, match=r"must be the one that was planned with .*another.*plan the study again"):
        run_trial(config(world, made), workspace)
    assert not list(workspace.paths.results.rglob("record.json"))


def test_the_corpus_must_be_what_was_planned_with(world, workspace):
    """A task stands for the corpus: its fingerprint is known."""
    place = dataclasses.replace(workspace, corpora={str(world.llama): "text"})

    def on(fingerprint):
        trial = config(world, stage("full"), steps=1, fractions=())
        base = dataclasses.replace(trial.pipeline.base_model, corpus=fingerprint)
        return dataclasses.replace(trial, pipeline=dataclasses.replace(trial.pipeline, base_model=base))

    known = task_ref("text", world.tasks).fingerprint
    assert run_trial(on(known), place).status == "complete"
    for fingerprint, where in (("another", place), (known, workspace)):
        with pytest.raises(SpecError, match=r"the corpus of .* must be the one that was planned with"):
            run_trial(on(fingerprint), dataclasses.replace(where, paths=Paths(workspace.paths.results / "new")))


def test_replay_without_a_corpus_replays_what_the_base_tells(world, workspace):
    result = run_trial(config(world, stage("full", retention="replay", replay_share=0.5)), workspace)
    assert result.status == TrialStatus.COMPLETE
    assert any("replayed texts were sampled from it" in note for note in result.notes)
    (share,) = [note for note in result.notes if note.startswith("replayed share of tokens")]
    assert float(share.split(": ")[1]) == pytest.approx(0.5, abs=0.1)


def test_nothing_can_follow_an_adapter_that_cannot_be_merged(world, workspace):
    stages = (stage("prefix_tuning", share=0.5), stage("full", share=0.5))
    with pytest.raises(SpecError, match=r"prefix_tuning cannot be merged .* put it last"):
        run_trial(config(world, *stages), workspace)


def test_an_interrupt_leaves_no_record(world, workspace, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.optim.AdamW.step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_trial(config(world), workspace)
    assert not list(workspace.paths.results.rglob("record.json"))


def test_a_choice_that_turns_out_not_to_fit_is_that_trials_record(world, workspace):
    """32 dictionaries of 16 keys need 1,024 numbers, and two digits give 90: another trial's choice may do."""
    impossible = stage("lora", curation="synthetic_key_value", kv_dictionaries=32, kv_keys=16, kv_digits=2)
    result = run_trial(config(world, impossible), workspace)
    assert result.status == "crashed"
    assert result.reason == "kv_digits must give 1024 different numbers, but 2 do not: raise it"
    assert result.scores == ()
    assert recorded(workspace, result)
    assert not workspace.paths.traceback(result.config.key).exists()
