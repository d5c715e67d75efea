"""What determines a trial's outcome without being in its stages is in its key: corpora, and what texts name."""

import shutil
from dataclasses import replace

import pytest
import yaml

from harness.driver.experiment import Site
from harness.driver.resolve import resolve
from harness.errors import SpecError
from harness.models.base_model import resolve_model
from harness.study.load import load_study
from harness.tasks.corpus import with_corpus
from harness.tasks.task import find_task


def test_another_corpus_is_another_reference(world, tmp_path):
    base = resolve_model(str(world.llama))
    references = []
    for text in ("old", "new", "old"):
        corpus = tmp_path / "corpus.jsonl"
        corpus.write_text(f'{{"text": "{text}"}}\n')
        references.append(with_corpus(replace(base, corpus=str(corpus)), ()))
    assert references[0] == references[2]
    assert references[0] != references[1]
    assert with_corpus(base, ()) == base.ref


def planned(world, folder, stage, task="colour"):
    """The params of a study's only stage as planning leaves them."""
    study = {
        "name": "s",
        "question": "q",
        "base_models": [str(world.llama)],
        "tasks": [task],
        "families": {"f": stage},
        "budget": {"trials": 1, "steps": 1},
    }
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(study))
    family = resolve(load_study(path), Site(task_folders=(folder,))).families["f"]
    return family.stages_at({})[0].params


def test_tasks_that_a_text_names_are_pinned_to_their_rows(world, tmp_path):
    shutil.copytree(world.tasks, tmp_path, dirs_exist_ok=True)
    stage = {"method": "full", "curation": "mixing", "params": {"pools": "echo=2, text"}}
    before = planned(world, tmp_path, stage)["pools"]
    tags = [find_task(name, (tmp_path,)).ref.fingerprint for name in ("echo", "text")]
    assert before == f"echo@{tags[0]}=2,text@{tags[1]}=1"
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"word": "red", "number": 99, "answer": 1, "text": "new"}\n')
    assert planned(world, tmp_path, stage)["pools"] != before


def test_models_that_a_text_names_are_pinned_to_their_content(world, tmp_path):
    shutil.copytree(world.tasks, tmp_path, dirs_exist_ok=True)
    stage = {"method": "full", "objective": "distillation", "params": {"teacher": "tiny-1m"}}
    assert planned(world, tmp_path, stage)["teacher"] == f"tiny-1m@{resolve_model('tiny-1m').ref.revision}=1"


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ({"curation": "mixing", "params": {"pools": "manners, echo=2"}}, "rejected answers, which echo does not name"),
        ({"retention": "replay", "params": {"replay_from": "echo"}}, "rejected answers, which echo does not name"),
        ({"retention": "replay"}, "replays plain texts"),
        ({"data": "echo"}, "rejected answers, which the task does not name"),
        ({"curation": "mixing", "params": {"pools": "manners"}}, None),
        ({"retention": "replay", "params": {"replay_from": "manners"}}, None),
        ({"retention": "replay", "params": {"replay_share": 0.0}}, None),
        ({"data": "manners"}, None),
    ],
)
def test_rows_without_preferences_are_refused_beside_an_objective_that_learns_from_them(stage, reason, world, tmp_path):
    shutil.copytree(world.tasks, tmp_path, dirs_exist_ok=True)
    stage = {"method": "lora", "objective": "dpo"} | stage
    if reason is None:
        planned(world, tmp_path, stage, task="manners")
        return
    with pytest.raises(SpecError, match=reason):
        planned(world, tmp_path, stage, task="manners")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nothing", "task must be one of those known, but got 'nothing'"),
        ("held", "task held must have a train split"),
    ],
)
def test_a_named_task_that_is_not_there_or_has_no_rows_is_refused(named, message, world, tmp_path):
    shutil.copytree(world.tasks, tmp_path, dirs_exist_ok=True)
    held = yaml.safe_load((tmp_path / "echo.yaml").read_text()) | {"task": "held"}
    del held["training_split"], held["dataset_kwargs"]["data_files"]["train"]
    (tmp_path / "held.yaml").write_text(yaml.safe_dump(held))
    with pytest.raises(SpecError, match=message):
        planned(world, tmp_path, {"method": "full", "curation": "mixing", "params": {"pools": named}})
