"""Checkpoints in mid-trial: a trial that is interrupted goes on from where it was, in another process.

    results/trials/XX/KEY/midway/0-000000120  the trial after 120 steps of its stage 0 (`training.checkpoint`, `STANDING`)
    results/trials/XX/KEY/midway/1-inputs     what its stage 1 starts from: the model and whatever else its stage 0 left

A checkpoint is built under another name and renamed, with the digests of its files inside. Those before it are removed
when it is whole, and all of them with the record. It is used by a trial of exactly its configuration, code and kind of
device; any other is removed, and a damaged one is moved to the quarantine. A record holds the cost of every attempt that its trial went on from.
"""

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cost.flops import Size
from harness.cost.meter import Spent, Tally
from harness.errors import StorageError, one_line
from harness.files import ROOM, now, parse_json, write_atomically
from harness.records.codec import Record, decode, to_json
from harness.records.execution import Inherited, Resumed, StageSettings
from harness.training import checkpoint
from harness.training.checkpoint import Progress
from harness.trial.accounts import StageWork
from harness.trial.provenance import code_version
from harness.trial.run import Run
from harness.trial.sealed import files, is_whole, remove_unfinished, sealed

if TYPE_CHECKING:
    from harness.training.learner import Learner
    from harness.training.solo_cost import Solo

log = logging.getLogger(__name__)

LARGEST_SHARE = 0.05
"""Share of the time that saving may take: where a checkpoint takes long, there are fewer."""
UNSAVED = "a checkpoint could not be saved, and perhaps later ones"
STANDING, BASE = "standing.json", "base"


@dataclass(frozen=True, kw_only=True)
class Work(Record):
    """What a stage has trained, as `trial.accounts` counts it."""

    size: Mapping[str, int]
    """Fields of `cost.flops.Size`."""
    tokens: int
    supervised_tokens: int
    squared_lengths: int


@dataclass(frozen=True, kw_only=True)
class Standing(Record):
    """Where a trial stands; what trains is in the files beside it."""

    key: str
    code: str
    """From `provenance.code_version`."""
    device: str
    attempt: str
    """`Meter.attempt` of the process that saved it."""
    started_at: str
    saved_at: str
    stage: int
    """Place in the pipeline of the stage that trains."""
    steps_done: int
    """Optimiser steps of earlier stages."""
    left: tuple[str, ...]
    """Objectives of earlier stages that left something beside the policy."""
    unscored: bool
    """See `Learner`."""
    padded_tokens: int
    settings: StageSettings
    """Of the stage that trains."""
    earlier: tuple[StageSettings, ...]
    """Of the stages before it."""
    work: tuple[Work, ...]
    """Of all stages up to this one."""
    notes: tuple[str, ...]
    inherited: Progress
    """The rung that the trial went on from."""
    resumed: Resumed
    spent: Spent
    """By all attempts up to now."""
    carried: Spent
    """By those before this one."""
    alone_s: float
    """Training seconds of all attempts, as they would have been alone."""
    trained_with: int


@dataclass(frozen=True)
class Found:
    """A checkpoint that a trial goes on from."""

    folder: Path
    standing: Standing

    @property
    def inputs(self) -> Path:
        """What its stage starts from, where that is not the trial's base."""
        return _inputs(self.folder.parent, self.standing.stage)

    @property
    def base(self) -> Path:
        """The model that earlier stages made."""
        return self.inputs / BASE

    @property
    def left(self) -> dict[str, Path]:
        """Folders that earlier stages left beside the policy, by objective."""
        return {objective: self.inputs / objective for objective in self.standing.left}


@dataclass(frozen=True, kw_only=True)
class Place:
    """The stage that a trial is in, as far as a checkpoint has to know."""

    stage: int
    steps_done: int
    base: Path | None
    """The model that earlier stages made; None for the trial's base."""
    left: Mapping[str, Path]

    @property
    def inputs(self) -> dict[str, Path]:
        """Folders that earlier stages left, by their names in a checkpoint."""
        return {**({BASE: self.base} if self.base else {}), **self.left}


def find(run: Run) -> Found | None:
    """The checkpoint that a trial goes on from, its cost and its notes taken up; others are removed."""
    folder = run.workspace.paths.midway(run.config.key)
    code_version(run.config)  # read now, while the files are those that this process imports
    remove_unfinished(folder)
    for path in sorted(folder.glob("[0-9]*-*[0-9]"), key=_reached, reverse=True):
        standing = _standing(path)
        inputs = _inputs(folder, standing.stage) if standing and standing.steps_done else None
        if standing is None:
            _discard(run, path, "it is damaged", standing, path)
        elif reason := _refusal(run, standing):
            _discard(run, path, reason, standing)
        elif inputs and not is_whole(inputs):
            _discard(run, path, "what its stage starts from is damaged", standing, inputs)
        else:
            _take_up_accounts(run, standing, _reached(path)[1])
            return Found(path, standing)
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _standing(path: Path) -> Standing | None:
    """What a checkpoint says of its trial; None where it is damaged."""
    try:
        return decode(Standing, parse_json((path / STANDING).read_text())) if is_whole(path) else None
    except (OSError, ValueError):
        return None


def _refusal(run: Run, standing: Standing) -> str | None:
    """Why a checkpoint that is whole cannot be used, or None."""
    if standing.key != run.config.key:
        return "it is of another trial"
    if standing.code != code_version(run.config):
        return "other code saved it"
    if standing.device != run.meter.device:
        return f"it was saved on {standing.device}"
    return None


def _discard(run: Run, path: Path, reason: str, standing: Standing | None, damaged: Path | None = None) -> None:
    """Remove a checkpoint that cannot be used; what it had taken stays in the trial's cost, as far as that is known.

    Args:
        run: The trial.
        path: The checkpoint.
        reason: Why it cannot be used.
        standing: What it says of its trial, where that can be read.
        damaged: What of it is damaged, and is set aside instead: whoever looks after the disk will want to see it.
    """
    if damaged:
        _set_aside(run, damaged, reason)
    shutil.rmtree(path, ignore_errors=True)
    own = standing is not None and standing.key == run.config.key and standing.device == run.meter.device
    if standing and own and standing.attempt != run.meter.attempt:
        run.meter.carry(standing.spent)
    stage, step = _reached(path)
    run.notes.append(f"a checkpoint after step {step} of stage {stage + 1} was not used, since {reason}")
    log.warning("trial %s: %s", run.config.key, run.notes[-1])


def _set_aside(run: Run, folder: Path, reason: str) -> None:
    """Move a folder of a checkpoint to the quarantine; where the disk refuses, it is removed like any other."""
    key = run.config.key
    target = run.workspace.paths.quarantined_folder(f"{key}-{folder.name}-{time.time_ns()}")
    why = (
        f"{target} was of a checkpoint of trial {key} and was not used, since {reason}: delete it when you have seen it"
    )
    try:
        write_atomically(target.with_suffix(".txt"), why + "\n")
        folder.rename(target)
    except (OSError, StorageError) as error:
        log.warning("trial %s: %s could not be set aside: %s", key, folder.name, error)


def _reached(path: Path) -> tuple[int, int]:
    """The stage, counting from 0, and the step of it after which a checkpoint was saved."""
    stage, _, step = path.name.partition("-")
    return int(stage), int(step)


def _take_up_accounts(run: Run, standing: Standing, step: int) -> None:
    """What a trial has behind it after some steps of its stage, apart from what trains."""
    # What this process has counted itself, before trials were split, is on the meter already.
    own = standing.attempt == run.meter.attempt
    run.meter.carry(standing.carried if own else standing.spent)
    run.notes = list(dict.fromkeys((*run.notes, *standing.notes)))
    run.started_at = standing.started_at
    accounts = run.accounts
    accounts.inherited = standing.inherited
    accounts.alone_before_s, accounts.trained_with = standing.alone_s, standing.trained_with
    accounts.padded_before, accounts.train_before_s = standing.padded_tokens, run.meter.so_far("train")
    accounts.stages = [_stage_work(work) for work in standing.work[:-1]]
    rung, resumed = standing.inherited, standing.resumed
    if not own:
        resumed = replace(resumed, steps=(*resumed.steps, standing.steps_done + step))
    run.execution = replace(
        run.execution,
        stages=standing.earlier,
        resumed=resumed,
        inherited=Inherited(rung.key, rung.total_s) if rung.key else None,
    )


def _stage_work(work: Work) -> StageWork:
    tally = Tally(work.tokens, work.supervised_tokens, work.squared_lengths)
    return StageWork(Size(**work.size), tally)


def take_up(run: Run, learner: Learner, found: Found) -> None:
    """Put what trains into a learner that was freshly prepared.

    Args:
        run: The trial, with the accounts that `find` took up.
        learner: Of the stage that was interrupted.
        found: Its checkpoint.
    """
    standing, work = found.standing, found.standing.work[-1]
    progress = checkpoint.restore(found.folder, learner)
    tally = learner.watch.tally
    tally.tokens, tally.supervised_tokens, tally.squared_lengths = (
        work.tokens,
        work.supervised_tokens,
        work.squared_lengths,
    )
    learner.unscored, learner.padded_tokens = standing.unscored, standing.padded_tokens
    if standing.settings.recomputes:
        learner.spare_memory()
    learner.settings = standing.settings
    learner.model.eval()
    run.curve = list(progress.curve)


def save(run: Run, learner: Learner, place: Place, solo: Solo | None) -> None:
    """Leave a checkpoint in the place of the one before; where the disk refuses, that one stays, and a note says so.

    Args:
        run: The trial.
        learner: Its stage; `Session.keep` was called, and no step is under way.
        place: Where the stage stands in the pipeline.
        solo: What the trial would take alone; None where it is alone.
    """
    folder = run.workspace.paths.midway(run.config.key)
    try:
        _check_room(folder, learner, place)
        _save_inputs(folder, place)
        with sealed(folder / f"{place.stage}-{learner.step:09d}") as building:
            checkpoint.write(building, learner, run.progress(learner))
            (building / STANDING).write_text(json.dumps(to_json(_standing_of(run, learner, place, solo))))
    except Exception as error:  # safetensors has its own type for what the system refuses
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(str(error), 200)
        log.warning("trial %s could not be saved: %s", run.config.key, reason)
        if not any(UNSAVED in note for note in run.notes):
            run.notes.append(f"after {place.steps_done + learner.step} steps {UNSAVED}: {reason}")
        return
    _prune(folder, learner, place)


def _check_room(folder: Path, learner: Learner, place: Place) -> None:
    """Refuse to fill a disk that would be full afterwards.

    Raises:
        OSError: When the file system has too little room.
    """
    needed = checkpoint.size(learner)
    if not _inputs(folder, place.stage).exists():
        needed += sum(path.stat().st_size for source in place.inputs.values() for path in files(source))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + ROOM:
        raise OSError(errno.ENOSPC, f"it needs {needed} bytes, and {free} are free on its disk")


def _save_inputs(folder: Path, place: Place) -> None:
    """Copy what a later stage starts from, once: where it lies now, it is gone with the process."""
    target = _inputs(folder, place.stage)
    if place.inputs and not target.exists():
        with sealed(target) as building:
            for name, source in place.inputs.items():
                shutil.copytree(source, building / name)


def _inputs(folder: Path, stage: int) -> Path:
    return folder / f"{stage}-inputs"


def _prune(folder: Path, learner: Learner, place: Place) -> None:
    """Remove the checkpoints before the one that is whole now, and inputs of earlier stages that are in use no longer."""
    used = {source.parent for source in place.inputs.values()}
    for path in folder.iterdir():
        stage, _, rest = path.name.partition("-")
        if not stage.isdigit() or path in used:
            continue
        if int(stage) < place.stage or (int(stage) == place.stage and rest.isdigit() and int(rest) < learner.step):
            shutil.rmtree(path, ignore_errors=True)


def _standing_of(run: Run, learner: Learner, place: Place, solo: Solo | None) -> Standing:
    accounts = run.accounts
    return Standing(
        key=run.config.key,
        code=code_version(run.config),
        device=run.meter.device,
        attempt=run.meter.attempt,
        started_at=run.started_at,
        saved_at=now(),
        stage=place.stage,
        steps_done=place.steps_done,
        left=tuple(place.left),
        unscored=learner.unscored,
        padded_tokens=learner.padded_tokens,
        settings=learner.settings,
        earlier=run.execution.stages,
        work=tuple(_work(stage) for stage in accounts.stages),
        notes=tuple(dict.fromkeys(run.notes)),
        inherited=accounts.inherited,
        resumed=run.execution.resumed or Resumed(),
        spent=replace(run.meter.spent(), peak_memory_bytes=accounts.peak_memory(solo)),
        carried=run.meter.carried,
        alone_s=accounts.alone_s(solo, learner.padded_tokens),
        trained_with=accounts.trained_with,
    )


def _work(stage: StageWork) -> Work:
    tally = stage.tally
    return Work(
        size=asdict(stage.size),
        tokens=tally.tokens,
        supervised_tokens=tally.supervised_tokens,
        squared_lengths=tally.squared_lengths,
    )
