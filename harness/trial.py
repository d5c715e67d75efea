"""A trial: one pipeline on one task, trained, scored, and written down, whatever happens.

`run_trial` is a pure function of its configuration; the record beside it is the truth that everything else derives
from. A failure is a record too, with its cause, its cost and no score; only a user's mistake (`SpecError`) and an
interrupt leave without one.

Costs are of this job alone: a trial that went on from a checkpoint names what it inherited under
`provenance.effective["inherited"]`, so that the sum over records is what was really spent. Imports and base weights
are charged to the first trial of a process that needs them.
"""

from __future__ import annotations

import math
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import checkpoint
from harness.artifacts import save_model, save_untouched, write_model_card
from harness.cost import Meter, Size, Tally, cost_record, model_size, training_flops
from harness.errors import Diverged, HarnessError, SpecError, TrialFailure, describe
from harness.layout import find_result, write_atomically, write_result
from harness.models import BaseModel, context_length
from harness.plugins import Row, Situation, StageSetup
from harness.provenance import effective_settings, provenance, utc_now
from harness.records import CurvePoint, Stage, TaskRef, TrialConfig, TrialResult, TrialStatus, derive_seed
from harness.train import (
    Choices,
    Losses,
    Prepared,
    Watch,
    choices,
    prepare,
    refusal,
    resolve_precision,
    train,
)
from harness.warm import (
    Workspace,
    facts_of,
    found_task,
    fresh_model,
    pick_device,
    ready_process,
    release_memory,
    resolved_model,
    rows_of,
    sampled_from,
    seed_everything,
    tokenizer_of,
)

__all__ = ["Workspace", "refusal", "run_pack", "run_trial"]

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.evaluate import Evaluated
    from harness.tasks import Task


def run_trial(config: TrialConfig, workspace: Workspace | None = None) -> TrialResult:
    """Run one trial, or return its record if it has one.

    Raises:
        SpecError: When the task, model or pipeline is wrong, which is the user's to mend.
        StorageError: When the record cannot be written.
    """
    workspace = workspace or Workspace()
    found = find_result(workspace.layout, config.key)
    if found is not None and (not workspace.keep_model or workspace.layout.model(config.key).exists()):
        return found
    started = time.perf_counter()
    run = _Run(config, workspace, Meter(pick_device(workspace.device)))
    run.meter.seconds["load"] += time.perf_counter() - started  # looking for a GPU imports torch
    result = run.result()
    run.write(result)
    return result


def run_pack(configs: Sequence[TrialConfig], workspace: Workspace) -> list[TrialResult]:
    """Run several trials in this process, which keeps base weights, tokenizers and tasks for the next."""
    return [run_trial(config, workspace) for config in configs]


@dataclass(frozen=True)
class _Ready:
    """A stage that will train: its plug-ins and its steps."""

    index: int
    stage: Stage
    chosen: Choices
    steps: int
    """Optimiser steps at full budget."""
    stop_at: int
    """Optimiser steps at the trial's fidelity."""
    is_last: bool = False


@dataclass
class _Run:
    """A trial while it runs."""

    config: TrialConfig
    workspace: Workspace
    meter: Meter
    started_at: str = field(default_factory=utc_now)
    tally: Tally = field(default_factory=Tally)
    size: Size = field(default_factory=Size)
    curve: list[CurvePoint] = field(default_factory=list)
    evaluated: list[Evaluated] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    effective: dict[str, Any] = field(default_factory=lambda: {"stages": []})
    inherited: checkpoint.Progress | None = None
    steps_done: int = 0

    def result(self) -> TrialResult:
        """Run to the end, or to what stops it."""
        try:
            with tempfile.TemporaryDirectory(prefix="harness-trial-") as scratch:
                self._execute(Path(scratch))
            return self._record(TrialStatus.COMPLETE, "")
        except TrialFailure as failure:
            return self._record(TrialStatus(failure.status), str(failure))
        except Exception as error:
            status = _status_of(error)
            write_atomically(self.workspace.layout.traceback(self.config.key), traceback.format_exc())
            return self._record(status, describe(error))

    def write(self, result: TrialResult) -> None:
        """Write the items, then the record: whoever sees a record sees all of it."""
        from harness.evaluate import write_items

        layout, key = self.workspace.layout, self.config.key
        if result.status.has_scores:
            write_items(layout.items(key), self.evaluated)
            layout.traceback(key).unlink(missing_ok=True)
        if layout.model(key).exists():
            write_model_card(layout.model(key), result)
        write_result(layout, result)

    def _record(self, status: TrialStatus, reason: str) -> TrialResult:
        scored = status.has_scores
        work = self.workspace
        self.effective |= {"device": self.meter.device, "threads": work.threads}
        self.effective["peak_memory_from"] = self.meter.peak_memory_from
        return TrialResult(
            config=self.config,
            status=status,
            reason=reason,
            scores=tuple(outcome.score for outcome in self.evaluated) if scored else (),
            curve=tuple(point if scored else replace(point, score=None) for point in self.curve),
            cost=cost_record(self.meter, self.tally, self.size, work.prices, work.threads),
            provenance=provenance(self.meter.device, self.started_at, self.effective),
            notes=tuple(dict.fromkeys(self.notes)),
        )

    def _execute(self, scratch: Path) -> None:
        with self.meter.phase("load"):
            ready_process(self.workspace.threads)
            release_memory()
            base = self._base()
            tokenizer = tokenizer_of(base)
            target = self._task(self.config.task)
            self.notes += target.notes
            stages = self._stages(base, target)
        model, last = None, None
        for ready in stages:
            if last is not None:
                base = self._merged(last, scratch / f"stage{ready.index}")
                model = last = None
                release_memory()
            last = self._train_stage(ready, base, tokenizer, target)
            model = last.model
        if model is None:
            with self.meter.phase("load"):
                model = fresh_model(base, {}, self.meter.device)
                self.size = replace(model_size(model), trainable_params=0, trainable_bytes=0)
        self._score(model, tokenizer, target, last)
        if self.workspace.keep_model:
            self._keep(model, last, base, tokenizer)

    def _base(self) -> BaseModel:
        ref = self.config.pipeline.base_model
        base = resolved_model(ref.name, ref.revision, self.workspace.corpora.get(ref.name))
        if ref.revision and base.ref.revision != ref.revision:
            raise SpecError(
                f"base model {ref.name!r} must be the one that was planned with (revision {ref.revision}), but its "
                f"content is now {base.ref.revision}: restore it, or plan the study again"
            )
        return base

    def _task(self, ref: TaskRef) -> Task:
        task = found_task(ref.name, self.workspace.task_folders)
        if ref.fingerprint and task.ref.fingerprint != ref.fingerprint:
            raise SpecError(
                f"task {ref.name!r} must be the one that was planned with ({ref.fingerprint}), but it is now "
                f"{task.ref.fingerprint}: restore its file and data, or plan the study again"
            )
        return task

    def _stages(self, base: BaseModel, target: Task) -> list[_Ready]:
        """The stages that train something, with their steps.

        Raises:
            SpecError: When a plug-in refuses the situation.
        """
        pipeline, config = self.config.pipeline, self.config
        facts = facts_of(base)
        task_facts = {"output_type": target.output_type, "metadata": target.metadata}
        reason = refusal(pipeline, Situation(self.meter.device, str(facts.get("model_type", "")), facts, task_facts))
        if reason:
            raise SpecError(f"this pipeline cannot run on {base.ref.name} here: {reason}")
        found = []
        for index, stage in enumerate(pipeline.stages):
            chosen, steps = choices(stage), round(config.steps * stage.share)
            if steps and chosen.method.needs_training:
                stop_at = min(steps, max(1, round(config.fidelity * steps)))
                found.append(_Ready(index, stage, chosen, steps, stop_at))
        return found[:-1] + [replace(ready, is_last=True) for ready in found[-1:]]

    def _train_stage(
        self, ready: _Ready, base: BaseModel, tokenizer: PreTrainedTokenizerBase, target: Task
    ) -> Prepared:
        chosen, device = ready.chosen, self.meter.device
        with self.meter.phase("load"):
            source = ready.stage.data
            task = self._task(TaskRef(source, ready.stage.data_fingerprint)) if source else target
            model = fresh_model(base, chosen.method.load_options(dict(chosen.params), device), device)
            params = dict(chosen.params)
            reserved = chosen.method.reserved(params)
            params["max_length"] = context_length(model.config, int(params["max_length"]), reserved)
            setup = StageSetup(
                params=params,
                tokenizer=tokenizer,
                device=device,
                seed=derive_seed(self.config.seed, "stage", ready.index, "data"),
                steps=ready.steps,
                load_base=partial(fresh_model, base, {}, device),
                corpus=partial(self._corpus, self._base()),
                generates=task.output_type == "generate_until",
                packed=chosen.objective.packs,
                note=self.notes.append,
            )
            seed_everything(derive_seed(self.config.seed, "stage", ready.index, "adapter"))
            model = chosen.method.attach(model, setup)
            self.size = model_size(model)
        with self.meter.phase("data"):
            stage = prepare(model, rows_of(task), chosen, setup, self._watch(ready, tokenizer, target))
        self._fit(stage, ready)
        return stage

    def _fit(self, stage: Prepared, ready: _Ready) -> None:
        """Train, from the highest rung that left a checkpoint, and leave one where asked to."""
        layout, config = self.workspace.layout, self.config
        single = len(config.pipeline.stages) == 1
        rung = checkpoint.find(layout, config) if single else None
        if rung:
            with self.meter.phase("load"):
                checkpoint.restore_weights(rung, stage.model)
                self.inherited = checkpoint.read_progress(rung)
                self.curve = list(self.inherited.curve)
                stage.losses.total, stage.losses.steps = self.inherited.losses
                self.effective["inherited"] = {"key": self.inherited.key, "seconds": self.inherited.total_s}
        before = self.tally.tokens, self.tally.squared_lengths
        try:
            with self.meter.phase("train"):
                train(stage, rung)
        finally:
            tokens, squares = self.tally.tokens - before[0], self.tally.squared_lengths - before[1]
            self.tally.flops += training_flops(self.size, tokens, squares)
            self.effective["stages"].append(effective_settings(stage.model, stage.trainer))
        self.steps_done += ready.stop_at
        if self.workspace.keep_checkpoint and single and config.fidelity < 1:
            with self.meter.phase("save"):
                self._save_checkpoint(stage, ready)
        with self.meter.phase("train"):
            stage.choices.retention.finish(stage.model, stage.setup)

    def _save_checkpoint(self, stage: Prepared, ready: _Ready) -> None:
        layout, config = self.workspace.layout, self.config
        progress = checkpoint.Progress(
            key=config.key,
            step=ready.stop_at,
            curve=tuple(self.curve),
            losses=(stage.losses.total, stage.losses.steps),
            train_seconds=self._train_seconds(),
            tokens=self._tokens(),
            total_s=self.meter.total_s + (self.inherited.total_s if self.inherited else 0.0),
        )
        checkpoint.save(layout.checkpoint(config.key), stage.model, stage.trainer, progress)
        checkpoint.announce(layout, config)

    def _watch(self, ready: _Ready, tokenizer: PreTrainedTokenizerBase, target: Task) -> Watch:
        """Score at the wanted fractions of the whole pipeline's steps; the last point reuses the final evaluation."""
        pipeline, evaluation = self.config.pipeline, self.config.evaluation
        total = sum(round(self.config.steps * stage.share) for stage in pipeline.stages)
        before = self.steps_done
        wanted = {max(1, round(fraction * total)) - before: fraction for fraction in evaluation.fractions}
        points = {step: f for step, f in wanted.items() if 0 < step <= ready.stop_at - ready.is_last}

        def scored(model: PreTrainedModel, step: int, losses: Losses) -> None:
            with self.meter.phase("evaluate"):
                outcome = _evaluate(model, tokenizer, target, self.config)
            self._add_point(points[step], before + step, losses.mean, outcome.score.value)

        return Watch(ready.stop_at, frozenset(points), scored, self.meter, self.tally, self.workspace.time_limit_s)

    def _add_point(self, fraction: float, step: int, loss: float | None, score: float) -> None:
        self.curve.append(CurvePoint(fraction, step, self._train_seconds(), self._tokens(), loss, score))

    def _train_seconds(self) -> float:
        return self.meter.so_far("train") + (self.inherited.train_seconds if self.inherited else 0.0)

    def _tokens(self) -> int:
        return self.tally.tokens + (self.inherited.tokens if self.inherited else 0)

    def _score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Task, last: Prepared | None
    ) -> None:
        """The task first, then the off-target suite; the task's score is the curve's last point."""
        with self.meter.phase("evaluate"):
            for task in (target, *(self._task(ref) for ref in self.config.evaluation.off_target)):
                self.evaluated.append(_evaluate(model, tokenizer, task, self.config))
        if last is not None:
            self._add_point(self.config.fidelity, self.steps_done, last.losses.mean, self.evaluated[0].score.value)

    def _merged(self, last: Prepared, folder: Path) -> BaseModel:
        """The model that a finished stage leaves, as the base of the next."""
        with self.meter.phase("save"):
            last.choices.method.merge(last.model, last.setup).save_pretrained(folder)
            last.setup.tokenizer.save_pretrained(folder)
        return BaseModel(self.config.pipeline.base_model, str(folder), is_temporary=True)

    def _keep(
        self, model: PreTrainedModel, last: Prepared | None, base: BaseModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        with self.meter.phase("save"):
            folder = self.workspace.layout.model(self.config.key)
            if last is None:
                save_untouched(folder, model, tokenizer, base)
            else:
                save_model(folder, model, last.choices.method, last.setup, base)

    def _corpus(self, base: BaseModel) -> list[Row]:
        """Rows of what the base knows."""
        from harness.data import text_rows

        if base.corpus is None:
            self.notes.append(f"the study names no corpus for {base.ref.name}: replayed texts were sampled from it")
            return sampled_from(base, self.meter.device)
        if Path(base.corpus).is_file():
            return text_rows(Path(base.corpus))
        rows = rows_of(found_task(base.corpus, self.workspace.task_folders))
        return [{"prompt": "", "completion": row["prompt"] + row["completion"]} for row in rows]


def _evaluate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, config: TrialConfig) -> Evaluated:
    """Score a model on the trial's split, in bfloat16 on a GPU that has it; the base takes the same path.

    Raises:
        Diverged: When the score is not finite.
    """
    import torch

    from harness.evaluate import evaluate

    device = model.device.type
    with torch.autocast(device, torch.bfloat16, enabled=resolve_precision("auto", device) == "bfloat16"):
        outcome = evaluate(model, tokenizer, task, config.evaluation.split, config.evaluation.limit)
    if not math.isfinite(outcome.score.value):
        raise Diverged(f"{outcome.score.metric} of {task.name} became {outcome.score.value}: lower the learning rate")
    return outcome


def _status_of(error: Exception) -> TrialStatus:
    """Out of memory or crashed; errors that are a user's or a disk's to mend are raised again.

    Raises:
        HarnessError: The error itself, when it is one.
    """
    from torch import OutOfMemoryError

    if isinstance(error, HarnessError):
        raise error
    # torch's CPU allocator raises a plain RuntimeError
    refused = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    memory = refused or isinstance(error, OutOfMemoryError | MemoryError)
    return TrialStatus.OUT_OF_MEMORY if memory else TrialStatus.CRASHED
