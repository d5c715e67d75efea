"""What all tests share: a quiet offline environment, and the real data where it is."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.patience import THOROUGH

# Before torch and the hub are imported: one thread (several on shared cores are slower), no network.
for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
    os.environ.setdefault(name, value)


# A busy machine is slow to draw and to run examples, which says nothing of the code.
settings.register_profile("harness", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("harness")


def pytest_collection_modifyitems(items):
    """Outside CI, skip what takes long and would find what other tests find sooner."""
    if not THOROUGH:
        long = pytest.mark.skip(reason="takes long; CI runs it (CI=true)")
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(long)


def pytest_xdist_make_scheduler(config, log):
    """Where tests run side by side, a file stays with one process; so does everything that looks at the one Slurm.

    xdist's own groups do nothing with pytest 9.2, and do not say so.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            folder, name = Path(nodeid.split("::")[0]).parts[-2:]
            if name in ("test_stacking.py", "test_methods.py"):  # slow, and alike in nothing but tiny models
                return nodeid
            return {"cluster": "slurm", "cli": "slurm", "e2e": "e2e"}.get(folder, f"{folder}/{name}")

    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; CI must have it, elsewhere its tests are skipped."""
    folder = os.environ.get("HARNESS_DATA")
    if folder:
        return Path(folder)
    reason = "HARNESS_DATA must name the folder of shared real data"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm() -> None:
    """A Slurm to submit to; CI must have one, elsewhere its tests are skipped."""
    if shutil.which("sbatch") and subprocess.run(["sinfo"], capture_output=True).returncode == 0:
        return
    reason = "a running Slurm is needed: bash scripts/start_slurm.sh"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class World:
    """Folders of tiny random models and tasks."""

    llama: Path
    gpt2: Path
    tasks: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    from tests.tiny import save_gpt2, save_llama, save_tasks

    root = tmp_path_factory.mktemp("world")
    for name in ("llama", "gpt2", "tasks"):
        (root / name).mkdir()
    return World(save_llama(root / "llama"), save_gpt2(root / "gpt2"), save_tasks(root / "tasks"))


@pytest.fixture
def paths(tmp_path):
    from harness.records.paths import Paths

    return Paths(tmp_path / "results", tmp_path / "reports")


@pytest.fixture(params=["own loop", "TRL"])
def engine(request, monkeypatch) -> str:
    """What supervised fine-tuning is trained by; TRL's trainer is there for objectives that the own loop does not run."""
    if request.param == "TRL":
        from harness.plugins import load

        monkeypatch.setattr(load("objectives", "sft"), "fuses", False)
    return request.param
