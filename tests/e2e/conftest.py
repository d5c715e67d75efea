"""A user's project folder in which the main job has been run once, for all tests that look at its outcome."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.e2e import preloaded
from tests.patience import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]
SHRUNK = {
    "tasks": ["tb_sentiment", "tb_newfacts"],
    "off_target": ["tb_copy", "tb_stories"],
    "families": {
        "full": {"method": "full", "params": {"learning_rate": {"low": 1.0e-4, "high": 3.0e-3}}},
        "lora": {"method": "lora", "params": {"learning_rate": {"low": 5.0e-4, "high": 2.0e-2}}},
        "full_replay": {
            "method": "full",
            "retention": "replay",
            "params": {"replay_share": 0.25, "learning_rate": {"low": 1.0e-4, "high": 3.0e-3}},
        },
    },
    "budget": {"trials": 2, "steps": 6},
    "search": {"sampler": "tpe", "limit": 20, "off_target": True, "fractions": [0.5, 1.0]},
    "confirm": {"finalists": 2, "seeds": 2, "limit": 20},
}


class Project:
    """A folder with the files that a user edits, and the two commands that a user types there."""

    def __init__(self, folder: Path):
        self.folder = folder

    def run(self, *command: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess:
        """Run a command as a user would and check its exit code."""
        return _checked(
            subprocess.run(
                command,
                cwd=self.folder,
                env=_environment(variables),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            ),
            code,
        )

    def harness(
        self, *arguments: str, code: int = 0, read_only: tuple[Path, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess:
        """Run `harness` with these arguments, by a process that has its libraries already."""
        with tempfile.TemporaryDirectory() as output:
            done = preloaded.run(arguments, self.folder, _environment(variables), Path(output), read_only)
        return _checked(done, code)


def _environment(variables: dict[str, str]) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}


def _checked(done: subprocess.CompletedProcess, code: int) -> subprocess.CompletedProcess:
    said = f"{done.args} gave {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == code, said
    return done


def lay_out(folder: Path, **changes: object) -> Project:
    """Copy what a fresh clone gives a user, with the quickstart study shrunk to seconds."""
    for name in ("Snakefile", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("profiles", "slurm", "studies"):
        shutil.copytree(REPOSITORY / name, folder / name)
    study = folder / "studies" / "quickstart.yaml"
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | SHRUNK | changes))
    return Project(folder)


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """The shrunk quickstart study, run from nothing by plain `snakemake`."""
    project = lay_out(tmp_path_factory.mktemp("project"))
    project.main_job = project.run("snakemake")
    return project


@pytest.fixture
def fresh(tmp_path):
    """A project in which nothing was run yet."""
    return lay_out(tmp_path)
