"""Finished models are scored as trials are."""

import json
import shutil
from dataclasses import replace

import pytest

from harness.compare.judgement import compare
from harness.compare.models import Exam, examine
from harness.errors import SpecError
from harness.records.paths import Paths
from harness.tasks.task import find_task
from harness.trial.finished import check_finished
from harness.trial.group import Workspace, run_trial
from harness.trial.model_folder import TUNED
from tests.tiny import config, stage


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    """A PEFT adapter that changes nothing yet."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(world.llama)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def test_an_adapter_is_asked_what_its_base_is_asked(world, adapter):
    tasks = [find_task(name, (world.tasks,)) for name in ("colour", "echo", "text")]
    base, tuned = examine([str(world.llama), str(adapter)], Exam(tasks=tasks, limit=6, device="cpu"))
    assert base.skills == tuned.skills
    colour, echo, text = base.skills.values()
    assert {len(skill.answers) for skill in (colour, echo, text)} == {6}
    assert {(answer.right, answer.choices) for answer in colour.answers} <= {("no", 2), ("yes", 2)}
    assert all(answer.prompt == f"Say {answer.right}:" for answer in echo.answers)
    assert all(answer.right.startswith("Number") and answer.given is None for answer in text.answers)
    assert compare(base, [tuned], 0.05).exit_code == 7


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("adapter_model.safetensors", None, "must hold adapter_model.safetensors"),
        ("adapter_config.json", "{", "must name the adapter's base"),
        ("adapter_config.json", json.dumps({"base_model_name_or_path": None}), "must name a model, but is None"),
        ("adapter_config.json", json.dumps({"base_model_name_or_path": "./gone"}), "gone is not a folder"),
    ],
)
def test_an_adapter_that_lacks_a_part_is_one_sentence(tmp_path, name, content, said):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(SpecError, match=said):
        check_finished(str(tmp_path))


@pytest.mark.parametrize(
    ("method", "keeps"),
    [
        ("lora", "adapter"),
        ("lily", "adapter"),
        ("prefix_tuning", "merged"),
        ("adapter_houlsby", "merged"),
        ("full", "merged"),
    ],
)
def test_what_a_trial_leaves_is_asked_as_the_trial_was(world, tmp_path, method, keeps):
    """Every item has the outcome that stands beside the trial's record, whichever form the model was kept in."""
    import pyarrow.parquet as pq

    trial = config(world, stage(method, learning_rate=2e-3), steps=4)
    trial = replace(trial, evaluation=replace(trial.evaluation, split="test"))
    paths = Paths(tmp_path)
    workspace = Workspace(paths, (world.tasks,), device="cpu", keep_model=True, keeps=keeps)
    result = run_trial(trial, workspace)
    assert result.status == "complete", result.reason
    folder = paths.model(trial.key)
    assert (folder / TUNED).exists() == (method not in ("full",))
    check_finished(str(folder))
    base, tuned = examine(
        [str(world.llama), str(folder)], Exam(tasks=[find_task("colour", (world.tasks,))], device="cpu")
    )
    rows = [row for row in pq.read_table(paths.items(trial.key)).to_pylist() if row["task"] == "colour"]
    own = tuned.skills["colour"].answers
    assert [answer.value for answer in own] == [row["value"] for row in rows]
    assert [answer.bits for answer in own] == pytest.approx([row["answer_bits"] for row in rows], rel=1e-4)
    assert tuned.skills["colour"].value == pytest.approx(result.target.value)
    assert [answer.bits for answer in own] != [answer.bits for answer in base.skills["colour"].answers]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(world, tmp_path, monkeypatch):
    """A hub cache laid out by hand, with one model at one commit; the hub itself is switched off."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(world.llama, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


def test_a_model_of_the_hub_is_asked_as_its_files_are(world, hub, adapter, tmp_path):
    placed = shutil.copytree(adapter, tmp_path / "placed")
    described = json.loads((placed / "adapter_config.json").read_text())
    named = described | {"base_model_name_or_path": "someone/tiny"}
    (placed / "adapter_config.json").write_text(json.dumps(named))
    exam = Exam(tasks=[find_task("colour", (world.tasks,))], limit=6, device="cpu")
    local, remote, tuned = examine([str(world.llama), "someone/tiny", str(placed)], exam)
    assert local.skills == remote.skills == tuned.skills
    assert compare(remote, [local], 0.05).base == "someone/tiny"


def test_a_model_that_the_hubs_cache_lacks_is_one_sentence(hub):
    with pytest.raises(SpecError, match=r"'someone/gone' must be embedded .*HF_HUB_OFFLINE.* not in its cache"):
        check_finished("someone/gone")
