"""Checkpoints at rungs: a trial that stops early leaves what its continuation needs to go on bit for bit.

A checkpoint holds the parameters that move (safetensors, by name), the states of optimiser, scheduler and random
generators as the trainer writes them, and the learning curve so far. A full-fidelity trial's folder lists the rungs
below it (`Layout.rungs`), so that a continuation finds the highest one without knowing the scheduler.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.layout import Layout, write_atomically
from harness.records import CurvePoint, TrialConfig, to_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

WEIGHTS, PROGRESS = "moved.safetensors", "progress.json"


@dataclass(frozen=True)
class Progress:
    """What a trial had behind it when it was saved."""

    key: str
    """The trial that was saved."""
    step: int
    curve: tuple[CurvePoint, ...]
    losses: tuple[float, int]
    """Sum and number of the steps' losses since the curve's last point."""
    train_seconds: float
    tokens: int
    total_s: float
    """Wall seconds of all phases, earlier rungs included."""


def save(folder: Path, model: PreTrainedModel, trainer: Trainer, progress: Progress) -> None:
    """Write a checkpoint beside `folder` and rename it there."""
    from safetensors.torch import save_file

    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    moved = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(moved, building / WEIGHTS)
    trainer._save_optimizer_and_scheduler(str(building))
    trainer._save_rng_state(str(building))
    trainer.state.save_to_json(str(building / "trainer_state.json"))
    (building / PROGRESS).write_text(json.dumps(to_json(progress)))
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def announce(layout: Layout, config: TrialConfig) -> None:
    """List this trial's checkpoint under its full-fidelity trial."""
    entry = layout.rungs(config.at(1.0).key) / f"{config.key}.json"
    write_atomically(entry, json.dumps({"fidelity": config.fidelity}))


def find(layout: Layout, config: TrialConfig) -> Path | None:
    """The checkpoint of the highest rung below this trial, or None."""
    found: list[tuple[float, Path]] = []
    for entry in sorted(layout.rungs(config.at(1.0).key).glob("*.json")):
        folder = layout.checkpoint(entry.stem)
        fidelity = float(json.loads(entry.read_text())["fidelity"])
        if fidelity < config.fidelity and (folder / PROGRESS).exists():
            found.append((fidelity, folder))
    return max(found)[1] if found else None


def restore_weights(folder: Path, model: PreTrainedModel) -> None:
    """Put the saved parameters into a model that has the same ones."""
    import torch
    from safetensors.torch import load_file

    saved = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name])


def read_progress(folder: Path) -> Progress:
    """What the saved trial had behind it."""
    data: dict[str, Any] = json.loads((folder / PROGRESS).read_text())
    return Progress(
        **(data | {"curve": tuple(CurvePoint(**point) for point in data["curve"]), "losses": tuple(data["losses"])})
    )
