"""Plug-ins of a project's own: found like the package's, and a broken one spoils nothing but itself."""

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from harness import plugins
from harness.errors import SpecError
from harness.methods.base import PeftMethod
from harness.plugins import FOLDERS, code_hash, load, load_all, names, overrides, project_root, use_project
from harness.report.page import FOLDER as SECTIONS
from harness.study.load import load_study

PACKAGE = Path(plugins.__file__).parent
METRIC = """
from harness.metrics.base import Measure

class {}(Measure):
    summary, output_types = "of this project", ()

    def item(self, answered):
        return 1
"""


@pytest.fixture
def project(tmp_path):
    """Writes files below a project's plugins/ and uses the project; afterwards no project is in use."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / "plugins" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        use_project(tmp_path)
        return tmp_path

    yield write
    use_project(tmp_path / "nothing")


def harness(root, *arguments):
    command = [sys.executable, "-m", "harness.cli.main", "--root", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def kind(folder):
    return folder.rpartition("/")[2]


def packaged(folder):
    """Name and text of one of the package's own plug-ins."""
    name = names(folder)[0]
    return name, (PACKAGE / folder / f"{name}.py").read_text()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_of_the_project_is_found_like_one_of_the_package(folder, project):
    before, (name, text) = names(folder), packaged(folder)
    project({f"{kind(folder)}/of_this_project.py": text})
    assert set(names(folder)) == {*before, "of_this_project"}
    mine, theirs = load(folder, "of_this_project"), load(folder, name)
    assert mine.__name__ == theirs.__name__
    assert mine is not theirs
    assert list(load_all(folder)) == list(names(folder))


def test_a_project_may_have_helpers_and_use_those_of_the_package(project):
    helped = METRIC.format("Mine") + "from harness.metrics import _of_ours, _overlap"
    project({"metrics/mine.py": helped, "metrics/_of_ours.py": "NUMBER = 7"})
    module = sys.modules[load("metrics", "mine").__module__]
    assert module._of_ours.NUMBER == 7
    assert Path(module._overlap.__file__).parent == PACKAGE / "metrics"
    assert "_of_ours" not in names("metrics")


def test_another_project_has_other_plugins(project, tmp_path):
    _, text = packaged("metrics")
    root = project({"metrics/mine.py": text})
    first = load("metrics", "mine")
    assert project_root() == root
    other = tmp_path / "other"
    shutil.copytree(root / "plugins", other / "plugins")
    use_project(other)
    assert load("metrics", "mine") is not first
    use_project(tmp_path / "nothing")
    assert project_root() is None
    assert "mine" not in names("metrics")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_library", r"can be imported, but raises ModuleNotFoundError in line 1 .*no_such_library"),
        ("def (:", r"can be imported, but raises SyntaxError"),
        ("raise SystemExit(3)", r"can be imported, but raises SystemExit in line 1"),
        ("", "one public plug-in class, but defines 0: derive a class from Measure"),
        ("class Mine: pass", "one public plug-in class, but defines 0: derive a class from Measure"),
        ("from harness.methods.lora import Lora", "one public plug-in class, but defines 0"),
        (METRIC.format("One") + METRIC.format("Two"), "one public plug-in class, but defines 2: prefix helpers with _"),
        (
            "from harness.metrics.base import Measure\nclass Mine(Measure): pass",
            "must define item and output_types and summary, but does not: see Measure",
        ),
    ],
)
def test_a_broken_file_is_one_sentence_and_the_others_go_on(text, expected, project, caplog):
    others = names("metrics")
    project({"metrics/mine.py": text})
    with pytest.raises(SpecError, match=expected) as caught:
        load("metrics", "mine")
    assert "plugins/metrics/mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tuple(load_all("metrics")) == others
    assert str(caught.value) in caplog.text


def test_a_name_that_the_package_has_is_refused(project):
    project({"methods/lora.py": ""})
    with pytest.raises(SpecError, match=r"plugins/methods/lora.py must have a name of its own, but harness has a lora"):
        load("methods", "lora")
    assert load("methods", "dora").__module__ == "harness.methods.dora"


def test_what_no_name_leads_to_is_said(project, caplog):
    project({"method/mine.py": "", "mine.py": "", "methods/base.py": "", "methods/_peft.py": "", "methods/_own.py": ""})
    said = [record.getMessage() for record in caplog.records]
    assert any("must be one of those known, but got 'method': did you mean 'methods'?" in line for line in said)
    for name in ("plugins/mine.py", "methods/base.py", "methods/_peft.py"):
        assert any(name in line for line in said), name
    assert len(said) == 4


def test_the_command_line_lists_what_works_and_what_is_broken(tmp_path):
    folder = tmp_path / "plugins" / "metrics"
    folder.mkdir(parents=True)
    (folder / "whole.py").write_text(METRIC.format("Whole"))
    (folder / "broken.py").write_text("import no_such_library")
    done = harness(tmp_path, "list", "metrics", "--json")
    assert done.returncode == 0, done.stderr
    entries = {entry["name"]: entry["summary"] for entry in json.loads(done.stdout)["metrics"]}
    assert entries["whole"] == "of this project"
    assert "no_such_library" in entries["broken"]
    assert set(names("metrics")) < set(entries)


def test_a_study_may_name_them(project):
    study = """
name: own
question: Does mine do?
base_models: [tiny-1m]
tasks: [tb_sort]
search: {sampler: mine}
families: {own: {method: mine}, other: {method: lora}}
budget: {trials: 1, steps: 1}
"""
    root = project({"samplers/mine.py": packaged("search/samplers")[1], "methods/mine.py": packaged("methods")[1]})
    (root / "own.yaml").write_text(study)
    assert load_study(root / "own.yaml").families["own"].stages[0].method == "mine"
    (root / "plugins" / "methods" / "mine.py").write_text("import no_such_library")
    use_project(root)
    with pytest.raises(SpecError, match=r"own.yaml: .*mine.py must be a Python file that can be imported"):
        load_study(root / "own.yaml")
    (root / "own.yaml").write_text(study.replace("own: {method: mine}, ", ""))
    assert load_study(root / "own.yaml").name == "own"


def test_a_section_is_in_the_report_and_a_broken_one_is_not(project):
    name, text = packaged(SECTIONS)
    project({"sections/mine.py": text, "sections/broken.py": "import no_such_library"})
    assert {"mine", name} < set(load_all(SECTIONS))
    assert "broken" not in load_all(SECTIONS)


HASHED = {
    "methods/mine.py": "def attach():\n    from harness.methods._of_ours import FACTOR",
    "methods/_of_ours.py": "from ._deeper import FACTOR",
    "methods/_deeper.py": "FACTOR = 2",
    "methods/_apart.py": "",
    "methods/other.py": "import torch",
}


@pytest.mark.parametrize(
    ("edited", "changes"),
    [
        ("methods/mine.py", True),
        ("methods/_of_ours.py", True),
        ("methods/_deeper.py", True),
        ("methods/_apart.py", False),
        ("methods/other.py", False),
    ],
)
def test_the_hash_of_a_plugin_is_of_its_file_and_of_the_helpers_that_it_imports(edited, changes, project):
    root = project(HASHED)
    before = code_hash("methods", "mine")
    assert len(before) == 12
    with (root / "plugins" / edited).open("a") as file:
        file.write("\n# edited")
    assert code_hash("methods", "mine") == before  # this process has what it has read
    use_project(root)
    assert (code_hash("methods", "mine") != before) is changes


def test_a_plugin_of_the_package_is_hashed_with_its_helpers_but_without_its_base(project, monkeypatch):
    def edited(name):
        source = cache(lambda path: path.read_bytes() + (b"#" if path.name == name else b""))
        monkeypatch.setattr(plugins, "_source", source)
        project({})
        return code_hash("methods", "lora")

    before = edited("no file")
    assert edited("base.py") == edited("dora.py") == before
    assert len({before, edited("_stacking.py"), edited("lora.py")}) == 3


def test_a_plugin_that_is_not_there_has_no_hash():
    assert code_hash("methods", "no_such_method") == ""


@pytest.mark.parametrize(
    ("folder", "name", "hook", "expected"),
    [
        ("methods", "lora", "before_step", False),
        ("methods", "lora", "detached", True),  # PeftMethod's, in the same file as the contract
        ("methods", "qalora", "detached", False),  # takes the contract's back: its base is no longer there
        ("methods", "dp_lora", "after_backward", True),
        ("retention", "replay", "finish", False),
        ("retention", "ties", "finish", True),  # a shared base's
        ("curation", "token_cleaning", "tokens", True),
        ("metrics", "brier", "total", False),
        ("metrics", "ece", "total", True),
    ],
)
def test_what_a_plugin_overrides(folder, name, hook, expected):
    kind = load(folder, name)
    assert overrides(kind, hook) == overrides(kind(), hook) == expected


def test_a_contract_overrides_nothing_of_its_own():
    assert not overrides(PeftMethod, "config")
