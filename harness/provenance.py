"""Where and with what a trial ran: versions, hardware, commit, and settings read back from the libraries' objects."""

from __future__ import annotations

import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.records import Provenance

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

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


def utc_now() -> str:
    """UTC in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(device: str, started_at: str, effective: Mapping[str, Any]) -> Provenance:
    """Everything about this process that may matter when scores are compared."""
    return Provenance(
        harness_version=__version__,
        versions=_versions(),
        hardware=hardware(device),
        hostname=socket.gethostname(),
        python=platform.python_version(),
        git_commit=_git_commit(),
        started_at=started_at,
        effective=dict(effective),
    )


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
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def effective_settings(model: PreTrainedModel, trainer: Trainer) -> dict[str, Any]:
    """What a stage really ran with: optimiser, schedule, steps, precision, and the adapter's configuration."""
    args, optimizer = trainer.args, trainer.optimizer
    group = optimizer.param_groups[0] if optimizer else {}
    adapters = getattr(model, "peft_config", {})
    return {
        "optimizer": type(getattr(optimizer, "optimizer", optimizer)).__name__,
        "learning_rate": group.get("initial_lr", group.get("lr")),
        "weight_decay": group.get("weight_decay"),
        "schedule": str(args.lr_scheduler_type.value),
        "warmup_steps": args.warmup_steps,
        "scheduled_steps": args.max_steps,
        "steps": trainer.state.global_step,
        "rows": len(trainer.train_dataset),
        "batch": [args.per_device_train_batch_size, args.gradient_accumulation_steps],
        "bf16": args.bf16,
        "weights": str(model.dtype).removeprefix("torch."),
        "seed": args.seed,
        "adapter": {name: _plain(config.to_dict()) for name, config in adapters.items()},
    }


def _plain(value: Any) -> Any:
    """Sets, enums and the like as JSON values; empty settings are left out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item not in (None, "", [], {}, set())}
    if isinstance(value, set | list | tuple):
        return sorted((_plain(item) for item in value), key=str)
    return value if isinstance(value, bool | int | float) else str(value)
