"""The documentation tells the truth: every command in it runs, the page of modules is theirs, every named file exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "ARCHITECTURE.md",
    "benchmarks/README.md",
    "docs/cluster.md",
    "docs/guide.md",
    "docs/modules.md",
    "docs/security.md",
)
COMMANDS = [
    line.removeprefix("$ ")
    for page in PAGES
    for block in re.findall(r"```console\n(.*?)```", (REPOSITORY / page).read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
# What sets up an environment of its own runs in .ci/run, the cluster in tests/cluster.
ELSEWHERE = {"make demo": ".ci/run", "make test": ".ci/run", "snakemake --profile slurm": "tests/cluster"}
# The clients of a Slurm that does not answer would be this machine's trouble, not the document's.
# Imported runs would stand in the tables that other tests of the same project look at.
IMPORT = "harness import studies/imports/example.csv --mapping studies/imports/example.yaml"
VARIABLES = {"harness doctor": {"PATH": str(Path(sys.executable).parent)}, IMPORT: {"HARNESS_ROOT": "studies/imports"}}


def test_the_readme_shows_commands():
    assert IMPORT in COMMANDS
    assert {"make demo", "make test", "snakemake --profile slurm", "harness recommend --task my_task"} <= set(COMMANDS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(ELSEWHERE)))
def test_every_command_shown_runs(project, command):
    if command.startswith("python benchmarks/"):
        assert (REPOSITORY / shlex.split(command)[1]).is_file()  # minutes each: run when their figures are renewed
        return
    project.run(*shlex.split(command), **VARIABLES.get(command, {}))


@pytest.mark.parametrize("command", sorted(ELSEWHERE))
def test_what_runs_elsewhere_is_there(command):
    place = REPOSITORY / ELSEWHERE[command]
    text = place.read_text() if place.is_file() else "".join(path.read_text() for path in place.glob("*.py"))
    assert command in text or ", ".join(f'"{word}"' for word in command.split()) in text


def test_the_page_of_modules_is_what_their_docstrings_say():
    script = [sys.executable, REPOSITORY / "scripts" / "modules.py"]
    shown = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert (REPOSITORY / "docs" / "modules.md").read_text() == shown


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_linked_or_named_exists(page):
    text = (REPOSITORY / page).read_text()
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    named = re.findall(r"`((?:harness|tests|studies|benchmarks|scripts|slurm|profiles|docs)/[\w./-]+)`", text)
    names = [name for name in linked if not ((REPOSITORY / page).parent / name).exists()]
    names += [name for name in named if not re.search(r"[A-Z]{4}|<", name) and not (REPOSITORY / name).exists()]
    assert names == []
