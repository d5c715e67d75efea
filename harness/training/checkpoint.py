"""Checkpoints: what a trial needs to go on bit for bit, saved at a rung, or in its midst (`trial.midway`).

A checkpoint holds the parameters that move and AdamW's moments (safetensors, by name), the state of an optimiser that the
method brings, what the method's hooks keep, or what a trainer of TRL's writes of its own state, and the learning curve
so far. A trial at a rung stops early and leaves one. A full-fidelity trial's folder lists the rungs below it
(`Paths.rungs`), so that a continuation finds the highest one without knowing the scheduler.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import parse_json, write_atomically
from harness.records.codec import Record, decode, to_json
from harness.records.paths import Paths
from harness.records.trial import CurvePoint, TrialConfig
from harness.training.trl import save_state

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from harness.training.learner import Learner

WEIGHTS, MOMENTS, OPTIMIZER = "moved.safetensors", "moments.safetensors", "optimizer.safetensors"
OLD_OPTIMIZER = "optimizer.pt"
"""What rungs of earlier versions have instead; only tensors and plain values are read from it."""
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
    building = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    write(building, learner, progress)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)


def write(building: Path, learner: Learner, progress: Progress) -> None:
    """Write the files of a checkpoint.

    Args:
        building: An empty folder.
        learner: What has trained; `Session.keep` was called.
        progress: What the trial has behind it.
    """
    from safetensors.torch import save_file

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
            tensors, rest = packed(learner.optimizer_state)
            save_file(tensors, building / OPTIMIZER, metadata={"rest": json.dumps(rest)})
    else:
        save_state(learner.trainer, building)
    (building / PROGRESS).write_text(json.dumps(to_json(progress)))


def size(learner: Learner) -> int:
    """Bytes of the tensors that `write` saves, those of the method's hooks left out."""
    tensors: list[Tensor] = [p for _, p in _moving(learner)]
    if learner.optimizer_state:
        tensors += packed(learner.optimizer_state)[0].values()
    tensors += [moment for pair in learner.moments.values() for moment in pair]
    return sum(tensor.nbytes for tensor in tensors)


def packed(state: Any) -> tuple[dict[str, Tensor], Any]:
    """An optimiser's state as tensors by name, each once, and the rest of it as JSON.

    Args:
        state: Dictionaries, lists and tuples of tensors and plain values.
    """
    import torch

    tensors: dict[str, Tensor] = {}
    names: dict[tuple[Any, ...], str] = {}

    def pack(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            same = (value.data_ptr(), value.shape, value.stride(), value.dtype)  # some optimisers share tables
            name = names.setdefault(same, str(len(names)))
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, pack(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [pack(item) for item in value]}
        return value

    rest = pack(state)
    return tensors, rest


def unpacked(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """The inverse of `packed`."""
    if not isinstance(rest, dict):
        return rest
    ((kind, content),) = rest.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpacked(tensors, item) for key, item in content}
    items = [unpacked(tensors, item) for item in content]
    return tuple(items) if kind == "tuple" else items


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
        learner.optimizer_state = _optimizer_state(folder, learner.setup.device)
        learner.moments = {
            name: (moments[f"0/{name}"], moments[f"1/{name}"]) for name in saved if f"0/{name}" in moments
        }
    learner.step = progress.step
    learner.losses.total, learner.losses.steps = progress.losses
    return progress


def _optimizer_state(folder: Path, device: str) -> dict[str, Any]:
    """The state of an optimiser that the method brings; empty for one that brings none."""
    import torch
    from safetensors import safe_open

    if (folder / OLD_OPTIMIZER).exists():
        old: dict[str, Any] = torch.load(folder / OLD_OPTIMIZER, map_location=device, weights_only=True)
        return old
    if not (folder / OPTIMIZER).exists():
        return {}
    with safe_open(folder / OPTIMIZER, "pt", device=device) as file:
        state: dict[str, Any] = unpacked(
            {name: file.get_tensor(name) for name in file.keys()},  # noqa: SIM118  it is no dictionary
            parse_json(file.metadata()["rest"]),
        )
    return state


def _moving(learner: Learner) -> Iterator[tuple[str, Parameter]]:
    """What the method trains; some methods let only a part of it move in any one step, so `requires_grad` does not say."""
    trains = re.compile(learner.choices.method.trains)
    return ((name, p) for name, p in learner.model.named_parameters() if trains.fullmatch(name))


def read_progress(folder: Path) -> Progress:
    """What the saved trial had behind it."""
    return decode(Progress, parse_json((folder / PROGRESS).read_text()))
