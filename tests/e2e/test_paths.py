"""Folders that nobody may write to, and paths that lead elsewhere or nowhere: one sentence each, and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from harness.cli.main import main
from tests.e2e import preloaded
from tests.e2e.conftest import REPOSITORY

NAMES = ["my file", "a\nb", "-rf", "[x]", "a*b", "{{x}}", "%s", "日本é\u202e😀"]


@pytest.fixture
def folder(world, tmp_path):
    """A project with a model and tasks of its own."""
    shutil.copytree(world.tasks, tmp_path / "studies" / "tasks")
    shutil.copytree(world.llama, tmp_path / "model")
    return tmp_path


def planned(folder, capsys, **changes):
    """Exit code and last words of `harness plan`."""
    study = {"question": "q", "base_models": [str(folder / "model")], "tasks": ["colour"]}
    study |= {"families": {"a": {"method": "lora"}}, "budget": {"trials": 1, "steps": 2}}
    (folder / "studies" / "s.yaml").write_text(yaml.safe_dump(study | changes))
    try:
        main.main(["--root", str(folder), "plan", "s"])
    except SystemExit as ended:
        said = capsys.readouterr().err
        assert said.startswith("harness: ")
        assert said.count("\n") == 1
        return ended.code, said
    return 0, capsys.readouterr().out


def with_data(folder, file):
    task = yaml.safe_load((folder / "studies/tasks/colour.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["train"] = file
    (folder / "studies/tasks/colour.yaml").write_text(yaml.safe_dump(task))


def test_a_study_that_is_a_link_to_nothing(folder, capsys):
    (folder / "studies" / "s.yaml").symlink_to("gone")
    with pytest.raises(SystemExit) as ended:
        main.main(["--root", str(folder), "plan", "s"])
    assert ended.value.code == 3
    assert "s.yaml must be a readable file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../colour", "../../../etc/passwd", "/etc/passwd", "studies/tasks", "a\nb", "a\0b"])
def test_a_task_that_is_a_path_is_no_name(name, folder, capsys):
    code, said = planned(folder, capsys, tasks=[name])
    assert code == 3
    assert "a task's name must be letters" in said


@pytest.mark.parametrize("target", ["gone.yaml", "other.yaml", "folder"])
def test_a_task_file_that_is_none(target, folder, capsys):
    """A link to nothing, a link to itself, a folder."""
    place = folder / "studies" / "tasks" / "other.yaml"
    place.mkdir() if target == "folder" else place.symlink_to(target)
    code, said = planned(folder, capsys, tasks=["other"])
    assert code == 3
    assert "other.yaml must be a readable file" in said


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("../" * 30 + "etc/passwd", "must hold one JSON object per line"),
        ("/etc/passwd", "must hold one JSON object per line"),
        (".", "must exist"),
        ("gone.jsonl", "must exist"),
        ("link.jsonl", "must exist"),
        ("a\0b", "must exist"),
        ("/dev/zero", "must exist"),
        ("a" * 5000, "is too long"),
    ],
)
def test_a_data_file_that_is_none(file, expected, folder, capsys):
    (folder / "studies" / "tasks" / "link.jsonl").symlink_to("gone")
    with_data(folder, file)
    code, said = planned(folder, capsys)
    assert code == 3
    assert expected in said


@pytest.mark.parametrize("name", NAMES)
def test_files_and_models_of_any_name_are_read(name, folder, capsys):
    tasks = folder / "studies" / "tasks"
    (tasks / "train.jsonl").rename(tasks / name)
    with_data(folder, name)
    (folder / "model").rename(folder / name)
    assert planned(folder, capsys, base_models=[str(folder / name)])[0] == 0


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_model_file_that_is_none_is_named(file, kind, folder, capsys):
    place = folder / "model" / file
    place.unlink()
    place.mkdir() if kind == "folder" else place.symlink_to("gone")
    code, said = planned(folder, capsys)
    assert code == 3
    assert file.partition(".")[0] in said
    assert "hub" not in said


@pytest.mark.parametrize(
    ("command", "code", "expected"),
    [
        (("plan", "quickstart"), 0, ""),
        (("base", "quickstart", "--runner", "inline"), 5, "results"),
        (("database",), 5, "results"),
        (("backtest",), 5, "harness database"),
        (("report", "quickstart"), 3, "quickstart"),
        (("train", "--task", "tb_copy", "--pipeline", "p.yaml", "--output", "results/out"), 5, "results/out"),
        (("export", "results/out"), 5, "must be a writable folder"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_results_that_are_read_only(command, code, expected, fresh, mounts):
    results = fresh.folder / "results"
    results.mkdir()
    pipeline = {"model": "tiny-1m", "steps": 1, "method": "lora"}
    (fresh.folder / "p.yaml").write_text(json.dumps(pipeline))
    done = fresh.harness(*command, code=code, read_only=(results,))
    assert "Traceback" not in done.stderr
    assert not list(results.iterdir())
    if code:
        (said,) = (line for line in done.stderr.splitlines() if line.startswith("harness: "))
        assert expected in said


def test_inputs_that_are_read_only_are_enough(fresh, mounts):
    done = fresh.harness("plan", "quickstart", read_only=(fresh.folder / "studies",))
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def mounts(tmp_path_factory):
    """Folders can be mounted read-only here; CI must be able to, elsewhere the tests are skipped."""
    code, *_ = preloaded.call(
        preloaded.make_read_only, ((tmp_path_factory.mktemp("mounted"),),), tmp_path_factory.mktemp("said")
    )
    if code == preloaded.NO_MOUNTS:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("mount namespaces are needed")


def test_snakemake_says_that_results_are_read_only(tmp_path, mounts):
    (tmp_path / "results").mkdir()
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    script = (
        "import os, sys; from pathlib import Path; from tests.e2e.preloaded import make_read_only\n"
        "make_read_only((Path(sys.argv[1]) / 'results',)); os.chdir(sys.argv[1]); os.execvp('snakemake', ['snakemake', '-n'])"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 5, done.stderr
    assert "snakemake: results must be a writable folder, but is not (Read-only file system)" in done.stderr
    assert "Traceback" not in done.stderr
