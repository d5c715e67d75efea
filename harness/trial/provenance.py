"""Where and with what a trial ran: versions, hardware, commit, and settings read back from the libraries' objects."""

from __future__ import annotations

import hashlib
import platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.plugins import AXIS_FOLDER, code_hash, load, names
from harness.records.codec import fingerprint
from harness.records.execution import Execution, StageSettings
from harness.records.trial import Provenance, Score, TrialConfig

if TYPE_CHECKING:
    from harness.training.learner import Learner

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "lm_eval",
    "tokenizers",
    "numpy",
)


def provenance(started_at: str, study: str, execution: Execution, plugins: Mapping[str, str]) -> Provenance:
    """Everything about this process that may matter when scores are compared.

    Args:
        started_at: UTC, ISO 8601.
        study: Whose driver has it run; empty for none.
        execution: How the trial was run.
        plugins: From `plugin_code`.
    """
    return Provenance(
        harness_version=__version__,
        versions=_versions(),
        hardware=hardware(execution.device),
        hostname=socket.gethostname(),
        python=platform.python_version(),
        git_commit=_git_commit(),
        started_at=started_at,
        study=study,
        effective=execution,
        plugins=plugins,
    )


def code_version(config: TrialConfig) -> str:
    """Fingerprint of all code that a trial's outcome may depend on: the harness's, its plug-ins', and the libraries'.

    Args:
        config: The trial.
    """
    return fingerprint([installed_code(), plugin_code(config, ())])


@cache
def installed_code() -> str:
    """Fingerprint of the code of the harness, of Python, and of the libraries."""
    return fingerprint([_own_code(), platform.python_version(), _versions()])


def _own_code() -> str:
    """Hash of the harness's own files, which are read once: they are those that this process imports."""
    home, digest = Path(__file__).parents[1], hashlib.sha256(__version__.encode())
    for path in sorted(home.rglob("*.py")):
        digest.update(f"{path.relative_to(home)} {path.stat().st_size} ".encode() + path.read_bytes())
    return digest.hexdigest()


def plugin_code(config: TrialConfig, scores: Sequence[Score]) -> dict[str, str]:
    """Hashes of the code of the plug-ins that a trial's outcome depends on, by folder and name (`methods/lora`).

    Args:
        config: The trial. Of a stage that trains nothing only the method counts.
        scores: Its scores, whose metrics may be plug-ins.
    """
    used = {("metrics", score.metric): None for score in scores if score.metric in names("metrics")}
    for stage in config.pipeline.stages:
        trains = config.steps > 0 and load("methods", stage.method).needs_training
        axes = AXIS_FOLDER if trains else ("method",)
        used |= {(AXIS_FOLDER[axis], getattr(stage, axis)): None for axis in axes}
    return {f"{folder}/{name}": code_hash(folder, name) for folder, name in sorted(used)}


@cache
def hardware(device: str) -> str:
    """Name of the GPU, or of the CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


@cache
def _versions() -> dict[str, str]:
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # a laptop may lack what only other methods need
            continue
    return found


@cache
def _git_commit() -> str | None:
    """Commit of the checkout that the harness runs from; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def stage_settings(learner: Learner) -> StageSettings:
    """What a stage really ran with: optimiser, schedule, steps, precision, and the adapter's configuration."""
    adapters = getattr(learner.model, "peft_config", {})
    return replace(
        learner.settings,
        steps=learner.step,
        weights=str(learner.model.dtype).removeprefix("torch."),
        adapter={name: _plain(config.to_dict()) for name, config in adapters.items()},
    )


def _plain(value: Any) -> Any:
    """Sets, enums and the like as JSON values; empty settings are left out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item not in (None, "", [], {}, set())}
    if isinstance(value, set | list | tuple):
        return sorted((_plain(item) for item in value), key=str)
    return value if isinstance(value, bool | int | float) else str(value)
