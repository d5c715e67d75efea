"""One trial while it runs: what it has been given, what it learned, what it cost, and how that becomes its record.

`trial` drives it, alone or side by side with others. Whatever goes wrong with one run is that run's record; only a
user's mistake (`SpecError`), a disk that refuses, and an interrupt go up.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.axes.contract import Situation, StageSetup
from harness.cost.flops import Size, model_size, training_flops
from harness.cost.meter import Meter, Tally
from harness.cost.price import cost_record
from harness.errors import Diverged, SpecError, TrialFailure, describe
from harness.files import now, write_atomically
from harness.models.base_model import BaseModel, context_length
from harness.nn.determinism import seed_everything
from harness.plugins import overrides
from harness.records.results import write_result
from harness.records.trial import (
    CurvePoint,
    PathPoint,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
    derive_seed,
)
from harness.space import Params
from harness.training import checkpoint
from harness.training.choices import choices, refusal
from harness.training.learner import Learner, Watch
from harness.training.prepare import make_learner
from harness.trial.failures import require_score, status_of
from harness.trial.model_folder import save_model, save_untouched, write_model_card
from harness.trial.process import WarmProcess, ready_process, release_memory
from harness.trial.provenance import effective_settings, plugin_code, provenance
from harness.trial.stage_run import Ready
from harness.trial.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.evaluation.evaluate import Evaluated
    from harness.tasks.task import Task


@dataclass
class Run:
    """A trial while it runs."""

    config: TrialConfig
    workspace: Workspace
    process: WarmProcess
    meter: Meter
    started_at: str = field(default_factory=now)
    tally: Tally = field(default_factory=Tally)
    size: Size = field(default_factory=Size)
    curve: list[CurvePoint] = field(default_factory=list)
    evaluated: list[Evaluated] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    path: list[PathPoint] = field(default_factory=list)
    effective: dict[str, Any] = field(default_factory=lambda: {"stages": []})
    inherited: checkpoint.Progress | None = None
    resumed_from: Path | None = None
    steps_done: int = 0
    stages: list[Ready] = field(default_factory=list)
    left: dict[str, Path] = field(default_factory=dict)
    """What stages left beside the policy, by objective."""
    learner: Learner | None = None
    """The stage that trains, or the last one that did."""
    model: PreTrainedModel | None = None
    trained_with: int = 1
    solo_equivalent_s: float | None = None
    opened: bool = False
    """Whether all that it names was found and may be put together; what is wrong then is wrong with this trial only."""
    status: TrialStatus | None = None
    """How it ended; None while it goes on."""
    reason: str = ""

    base: BaseModel = field(init=False)
    target: Task = field(init=False)
    tokenizer: PreTrainedTokenizerBase = field(init=False)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What is raised inside ends this trial, and nothing else."""
        try:
            yield
        except TrialFailure as failure:
            self.fail(failure)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the trial with a failure or a crash.

        Raises:
            HarnessError: The error itself, when it is one that is not a trial's own.
        """
        if isinstance(error, TrialFailure):
            self.status, self.reason = TrialStatus(error.status), str(error)
            return
        if isinstance(error, SpecError) and self.opened:  # the study goes on: other choices may do
            self.status, self.reason = TrialStatus.CRASHED, str(error)
            return
        self.status, self.reason = status_of(error), describe(error)
        text = "".join(traceback.format_exception(error))
        write_atomically(self.workspace.paths.traceback(self.config.key), text)

    def open(self) -> None:
        """Find the base, the tokenizer, the task, and the stages that train something.

        Raises:
            SpecError: When one of them is wrong, or a plug-in refuses the situation.
        """
        with self.meter.phase("load"):
            ready_process(self.workspace.threads)
            self.base = self.process.planned_base(self.config.pipeline.base_model, self.workspace)
            self.tokenizer = self.process.tokenizer_of(self.base)
            self.target = self.task(self.config.task)
            self.notes += self.target.notes
            self.stages = self._stages()
            self.process.check_named(self.config, self.workspace.task_folders)
        self.opened = True

    def prepare(self, ready: Ready, base: BaseModel) -> None:
        """Attach a stage's method to a model and make its learner, at the highest rung that left a checkpoint."""
        chosen, device = ready.chosen, self.meter.device
        with self.meter.phase("load"):
            source = ready.stage.data
            task = self.task(TaskRef(source, ready.stage.data_fingerprint)) if source else self.target
            self.model = self.process.model_for(base, chosen.method, chosen.params, device)
            setup = self._setup(ready, task, base)
            seed_everything(derive_seed(self.config.seed, "stage", ready.index, "adapter"))
            self.model = chosen.method.attach(self.model, setup)
            self.size = model_size(self.model)
        with self.meter.phase("data"):
            self.learner = make_learner(
                self.model, self.process.rows_of(task), chosen, setup, self._watch(ready), self.process.reference_sums
            )
        rung = checkpoint.find(self.workspace.paths, self.config) if len(self.config.pipeline.stages) == 1 else None
        if rung:
            with self.meter.phase("load"):
                self.inherited = checkpoint.restore(rung, self.learner)
                self.resumed_from = rung
                self.curve = list(self.inherited.curve)
                self.effective["inherited"] = {"key": self.inherited.key, "seconds": self.inherited.total_s}

    def count(self) -> None:
        """Count a stage that has ended, however it ended."""
        learner = self.trainee
        self.effective["stages"].append(effective_settings(learner))
        tokens, squares = learner.watch.tally.tokens, learner.watch.tally.squared_lengths
        self.tally.flops += training_flops(self.size, tokens, squares)
        self.tally.take(learner.watch.tally)

    def trained(self, ready: Ready) -> None:
        """Leave a checkpoint of a stage that has ended where asked to, and let retention have the last word."""
        learner = self.trainee
        if learner.failure is not None:
            raise learner.failure
        learner.check_weights()
        self.steps_done += ready.stop_at
        if self.workspace.keep_checkpoint and len(self.config.pipeline.stages) == 1 and self.config.fidelity < 1:
            with self.meter.phase("save"):
                self._save_checkpoint(learner, ready)
        if overrides(learner.choices.retention, "finish"):
            with self.meter.phase("train"):
                learner.model = self.model = learner.choices.method.merge(learner.model, learner.setup)
                learner.merged = True
                learner.choices.retention.finish(learner.model, learner.setup)

    def untouched(self) -> None:
        """The base as it is, where no stage trains anything."""
        with self.meter.phase("load"):
            self.model = self.process.fresh_model(self.base, {}, self.meter.device)
            self.size = replace(model_size(self.model), trainable_params=0, trainable_bytes=0)

    def paused(self, outcome: Evaluated | Diverged) -> None:
        """The task's score at a point of the learning curve."""
        learner = self.trainee
        value = require_score(outcome).score.value
        step = self.steps_done + learner.step
        total = self.config.pipeline_steps
        fractions = {max(1, round(fraction * total)): fraction for fraction in self.config.evaluation.fractions}
        self._add_point(fractions[step], step, learner.losses.mean, value)
        learner.losses.total, learner.losses.steps = 0.0, 0

    def scored(self, outcome: Evaluated | Diverged) -> None:
        """A final score; the first one is the task's own, and the curve's last point."""
        evaluated = require_score(outcome)
        if not self.evaluated and self.learner is not None:
            self._add_point(self.config.fidelity, self.steps_done, self.learner.losses.mean, evaluated.score.value)
        self.evaluated.append(evaluated)

    def walk(self) -> Iterator[float]:
        """Places that the last stage's retention has scored beside the final weights, while the model is there."""
        if self.learner is not None and self.model is not None:
            yield from self.learner.choices.retention.path(self.model, self.learner.setup)

    def passed(self, place: float, outcomes: Sequence[Evaluated | Diverged]) -> None:
        """Scores at a place of the walk."""
        self.path.append(PathPoint(place, tuple(require_score(outcome).score for outcome in outcomes)))

    def merged(self, folder: Path, base: BaseModel, objective: str) -> BaseModel:
        """The next stage's base: what a finished stage made of `base`, or `base` again if it left something beside it."""
        learner, after = self.trainee, BaseModel(self.config.pipeline.base_model, str(folder), is_temporary=True)
        with self.meter.phase("save"):
            if learner.choices.objective.leaves_policy:
                learner.plain().save_pretrained(folder)
                learner.setup.tokenizer.save_pretrained(folder)
            else:
                learner.choices.objective.leave(learner.plain(), learner.setup, folder)
                self.left[objective], after = folder, base
        self.model = self.learner = None
        del learner
        release_memory()
        return after

    def keep(self, base: BaseModel) -> None:
        """Write the tuned model; `base` is what its last stage started from."""
        folder = self.workspace.paths.model(self.config.key)
        with self.meter.phase("save"):
            if self.learner is None:
                assert self.model is not None
                save_untouched(folder, self.model, self.tokenizer, base)
            else:
                save_model(folder, self.learner, base)

    def result(self) -> TrialResult:
        """The record."""
        status, work, meter = self.status or TrialStatus.COMPLETE, self.workspace, self.meter
        scored = status.has_scores
        scores = tuple(outcome.score for outcome in self.evaluated) if scored else ()
        self.effective |= {"device": meter.device, "threads": work.threads, "peak_memory_from": meter.peak_memory_from}
        self.effective["latency_s"] = {
            outcome.score.task: outcome.latency_s for outcome in self.evaluated if outcome.latency_s
        }
        cost = cost_record(meter, self.tally, self.size, work.prices, work.threads)
        return TrialResult(
            config=self.config,
            status=status,
            reason=self.reason,
            scores=scores,
            curve=tuple(point if scored else replace(point, score=None) for point in self.curve),
            cost=replace(
                cost,
                trained_with=self.trained_with,
                solo_equivalent_s=self.solo_equivalent_s,
                utilisation=self._utilisation(),
            ),
            provenance=provenance(self.meter.device, self.started_at, self.effective, plugin_code(self.config, scores)),
            notes=tuple(dict.fromkeys(self.notes)),
            path=tuple(self.path) if scored else (),
        )

    def write(self) -> TrialResult:
        """Write the items, then the record: whoever sees a record sees all of it."""
        from harness.evaluation.evaluate import write_items

        paths, key, result = self.workspace.paths, self.config.key, self.result()
        if result.status.has_scores:
            write_items(paths.items(key), self.evaluated)
            paths.traceback(key).unlink(missing_ok=True)
        if paths.model(key).exists():
            write_model_card(paths.model(key), result)
        write_result(paths, result)
        return result

    @property
    def trainee(self) -> Learner:
        """The learner of the stage that trains."""
        assert self.learner is not None
        return self.learner

    def task(self, ref: TaskRef) -> Task:
        """A task that must be what it was when the study was planned."""
        return self.process.planned_task(ref, self.workspace.task_folders)

    def _stages(self) -> list[Ready]:
        from harness.tasks.facts import task_facts

        pipeline, config = self.config.pipeline, self.config
        reason = refusal(
            pipeline, Situation(self.meter.device, self.process.facts_of(self.base), task_facts(self.target))
        )
        if reason:
            raise SpecError(f"this pipeline cannot run on {self.base.ref.name} here: {reason}")
        found = []
        for index, stage in enumerate(pipeline.stages):
            chosen, steps = choices(stage), config.stage_steps(stage)
            if steps and chosen.method.needs_training:
                found.append(Ready(index, stage, chosen, steps, config.stage_stop(stage)))
        return found[:-1] + [replace(ready, is_last=True) for ready in found[-1:]]

    def _setup(self, ready: Ready, task: Task, base: BaseModel) -> StageSetup:
        params, device = ready.chosen.params, self.meter.device
        reserved = ready.chosen.method.reserved(params)
        assert self.model is not None
        max_length = context_length(self.model.config, params.integer("max_length"), reserved)
        return StageSetup(
            params=Params(params, max_length=max_length, precision=self._precision(params.text("precision"))),
            tokenizer=self.tokenizer,
            device=device,
            seed=derive_seed(self.config.seed, "stage", ready.index, "data"),
            steps=ready.steps,
            load_base=partial(self.process.fresh_model, base, {}, device),
            corpus=partial(self.process.corpus_of, self.base, self.workspace.task_folders, device, self.notes.append),
            generates=task.output_type == "generate_until",
            packed=ready.chosen.objective.packs,
            base="" if base.is_temporary else f"{base.ref.name}@{base.ref.revision}",
            cache=self.workspace.paths.cache,
            tokens=self.process.tokens,
            note=self.notes.append,
            rows=partial(self.process.rows_of, task),
            rows_of=lambda named: self.process.rows_of(self.task(TaskRef(named.name, named.tag))),
            model_of=partial(self.process.named_model, device=device),
            task_metadata=task.metadata,
            left=dict(self.left),
        )

    def _precision(self, wanted: str) -> str:
        """`auto` as bfloat16 where this machine trains this base faster in it, as float32 elsewhere."""
        assert self.model is not None
        if wanted != "auto":
            return wanted
        folder, revision = self.workspace.paths.machine, self.base.ref.revision
        return (
            "bfloat16"
            if self.process.measurements.bf16_is_faster(self.model, self.meter.device, folder, revision)
            else "float32"
        )

    def _utilisation(self) -> float | None:
        """Model FLOPs of this job's training over its seconds times the matrix peak, in the precision it used."""
        seconds = self.meter.seconds["train"]
        if self.learner is None or not self.tally.flops or not seconds:
            return None
        half = bool(self.learner.facts.get("bf16"))
        peak = self.process.measurements.peak_flops(
            self.meter.device, "bfloat16" if half else "float32", self.workspace.paths.machine
        )
        return self.tally.flops / (seconds * peak)

    def _watch(self, ready: Ready) -> Watch:
        """Pause at the wanted fractions of the whole pipeline's steps; the last point reuses the final evaluation."""
        total = self.config.pipeline_steps
        wanted = {max(1, round(fraction * total)) - self.steps_done for fraction in self.config.evaluation.fractions}
        if not ready.chosen.objective.leaves_policy:
            wanted = set()  # what it trains is not what the task is asked of
        points = frozenset(step for step in wanted if 0 < step <= ready.stop_at - ready.is_last)
        return Watch(
            stop_at=ready.stop_at,
            score_at=points,
            meter=self.meter,
            tally=Tally(),
            time_limit_s=self.workspace.time_limit_s,
        )

    def _save_checkpoint(self, learner: Learner, ready: Ready) -> None:
        paths, config = self.workspace.paths, self.config
        progress = checkpoint.Progress(
            key=config.key,
            step=ready.stop_at,
            curve=tuple(self.curve),
            losses=(learner.losses.total, learner.losses.steps),
            train_seconds=self._train_seconds(),
            tokens=self._tokens(),
            total_s=self.meter.total_s + (self.inherited.total_s if self.inherited else 0.0),
        )
        checkpoint.save(paths.checkpoint(config.key), learner, progress)
        checkpoint.announce(paths, config)

    def _add_point(self, fraction: float, step: int, loss: float | None, score: float) -> None:
        self.curve.append(
            CurvePoint(
                fraction=fraction,
                step=step,
                train_seconds=self._train_seconds(),
                tokens=self._tokens(),
                loss=loss,
                score=score,
            )
        )

    def _train_seconds(self) -> float:
        return self.meter.so_far("train") + (self.inherited.train_seconds if self.inherited else 0.0)

    def _tokens(self) -> int:
        going = self.learner.watch.tally.tokens if self.learner else 0
        return self.tally.tokens + going + (self.inherited.tokens if self.inherited else 0)
