"""Checkpoints at rungs: a trial that stops early leaves what its continuation needs to go on bit for bit.

A checkpoint holds the parameters that move and AdamW's moments (safetensors, by name), the state of an optimiser that the
method brings, what the method's hooks keep, or what a trainer of TRL's writes of its own state, and the learning curve
so far. A full-fidelity trial's folder lists the rungs below it (`Paths.rungs`), so that a continuation finds the highest
one without knowing the scheduler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import parse_json, write_atomically
from harness.records.codec import Record, decode, to_json
from harness.records.paths import Paths
from harness.records.trial import CurvePoint, TrialConfig
from harness.training.trl import save_state

if TYPE_CHECKING:
    from torch.nn import Parameter

    from harness.training.learner import Learner

WEIGHTS, MOMENTS, OPTIMIZER = "moved.safetensors", "moments.safetensors", "optimizer.pt"
METHOD = "method.safetensors"
PROGRESS = "progress.json"


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
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


NOTHING = Progress(key="", step=0, curve=(), losses=(0.0, 0), train_seconds=0.0, tokens=0, total_s=0.0)
"""Behind a trial that starts from the base."""


def save(folder: Path, learner: Learner, progress: Progress) -> None:
    """Write a checkpoint beside `folder` and rename it there, so that a reader finds all of it or nothing.

    Args:
        folder: Where it belongs; an older checkpoint there is replaced.
        learner: What has trained.
        progress: What the trial has behind it.
    """
    import torch
    from safetensors.torch import save_file

    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    # safetensors refuses views that are not contiguous.
    save_file({name: p.detach().cpu().contiguous() for name, p in _moving(learner)}, building / WEIGHTS)
    if state := learner.choices.method.state(learner.model):
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, building / METHOD)
    if learner.trainer is None:
        save_file(
            {f"{n}/{name}": m[n].cpu().contiguous() for name, m in learner.moments.items() for n in (0, 1)},
            building / MOMENTS,
        )
        if learner.optimizer_state:
            torch.save(learner.optimizer_state, building / OPTIMIZER)
    else:
        save_state(learner.trainer, building)
    (building / PROGRESS).write_text(json.dumps(to_json(progress)))
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def announce(paths: Paths, config: TrialConfig) -> None:
    """List this trial's checkpoint under its full-fidelity trial.

    Args:
        paths: The results.
        config: The trial that was saved.
    """
    entry = paths.rungs(config.at(1.0).key) / f"{config.key}.json"
    write_atomically(entry, json.dumps({"fidelity": config.fidelity}))


def find(paths: Paths, config: TrialConfig) -> Path | None:
    """The checkpoint of the highest rung below this trial, or None.

    Args:
        paths: The results.
        config: The trial that would go on from it.
    """
    rungs: list[tuple[float, Path]] = []
    for entry in sorted(paths.rungs(config.at(1.0).key).glob("*.json")):
        folder = paths.checkpoint(entry.stem)
        fidelity = float(parse_json(entry.read_text())["fidelity"])
        if fidelity < config.fidelity and (folder / PROGRESS).exists():
            rungs.append((fidelity, folder))
    return max(rungs)[1] if rungs else None


def restore(folder: Path, learner: Learner) -> Progress:
    """Put a saved trial's weights, moments, step and losses into a learner that has the same parameters.

    What a trainer of TRL's needs stays in the folder: it is to be resumed from there.

    Args:
        folder: Where `save` wrote to.
        learner: Freshly prepared, with the method attached.

    Returns:
        What the saved trial had behind it.
    """
    import torch
    from safetensors.torch import load_file

    saved = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in _moving(learner):
            parameter.copy_(saved[name])
    if (folder / METHOD).exists():
        learner.choices.method.load_state(learner.model, load_file(folder / METHOD, device=learner.setup.device))
    progress = read_progress(folder)
    if learner.trainer is None:
        moments = load_file(folder / MOMENTS, device=learner.setup.device)
        if (folder / OPTIMIZER).exists():
            learner.optimizer_state = torch.load(
                folder / OPTIMIZER, map_location=learner.setup.device, weights_only=True
            )
        learner.moments = {
            name: (moments[f"0/{name}"], moments[f"1/{name}"]) for name in saved if f"0/{name}" in moments
        }
    learner.step = progress.step
    learner.losses.total, learner.losses.steps = progress.losses
    return progress


def _moving(learner: Learner) -> Iterator[tuple[str, Parameter]]:
    """What the method trains; some methods let only a part of it move in any one step, so `requires_grad` does not say."""
    trains = re.compile(learner.choices.method.trains)
    return ((name, p) for name, p in learner.model.named_parameters() if trains.fullmatch(name))


def read_progress(folder: Path) -> Progress:
    """What the saved trial had behind it."""
    return decode(Progress, parse_json((folder / PROGRESS).read_text()))
