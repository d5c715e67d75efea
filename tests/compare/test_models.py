"""Finished models are scored as trials are."""

import json

import pytest

from harness.compare.judgement import compare
from harness.compare.models import Exam, examine
from harness.errors import SpecError
from harness.tasks.task import find_task
from harness.trial.finished import check_finished


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
