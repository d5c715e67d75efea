"""What a trial does by itself: it is opened, its stages are prepared, finished, and handed on one after the other.

Each step returns the state that the next one needs: `Opened`, then for every stage a `Start` and a `Prepared`, at last
`Tuned`. A step that ends the trial returns `Ended` or raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.cost.flops import model_size
from harness.cost.meter import Tally
from harness.errors import SpecError
from harness.methods.base import Options
from harness.models.base_model import BaseModel, context_length
from harness.nn.determinism import seed_everything
from harness.nn.ways import ways_of
from harness.plugins import overrides
from harness.records.execution import Inherited
from harness.records.trial import Ended, Stage, TaskRef, TrialConfig, derive_seed
from harness.space import Params
from harness.tasks.chat_rows import template_for
from harness.tasks.facts import task_facts
from harness.training import checkpoint
from harness.training.choices import Choices, choices, refusal
from harness.training.learner import Learner, Watch
from harness.training.prepare import make_learner
from harness.training.reach import Weights, reach
from harness.trial import midway
from harness.trial.failures import finite
from harness.trial.midway import Found, Place
from harness.trial.model_folder import save_model, save_untouched
from harness.trial.process import ready_process
from harness.trial.provenance import stage_settings
from harness.trial.run import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.evaluation.evaluate import ScoreOutcome
    from harness.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A stage that will train: its plug-ins and its steps."""

    index: int
    """Place in the pipeline, counting from 0 and stages that train nothing."""
    stage: Stage
    chosen: Choices
    steps: int
    """Optimiser steps at full budget."""
    stop_at: int
    """Optimiser steps at the trial's fidelity."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A trial of which everything that it names was found and may be put together."""

    run: Run
    base: BaseModel
    tokenizer: PreTrainedTokenizerBase
    target: Task
    stages: tuple[StagePlan, ...]

    def task(self, ref: TaskRef) -> Task:
        """A task that must be what it was when the study was planned."""
        return self.run.process.planned_task(ref, self.run.workspace.task_folders)


@dataclass(frozen=True, kw_only=True)
class Start:
    """A trial before one of its stages."""

    opened: Opened
    stages: tuple[StagePlan, ...]
    """Those to come; the first is next."""
    base: BaseModel
    """The trial's base, or what earlier stages made of it."""
    steps_done: int = 0
    """Optimiser steps of earlier stages."""
    left: Mapping[str, Path] = field(default_factory=dict)
    """Folders that earlier stages left beside the policy, by objective."""
    midway: Found | None = None
    """The checkpoint that its next stage goes on from, if it was interrupted there."""

    @property
    def run(self) -> Run:
        """The trial."""
        return self.opened.run

    @property
    def next(self) -> StagePlan:
        """The stage that it stands before."""
        return self.stages[0]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A trial with a stage that can train."""

    start: Start
    learner: Learner
    resumed_from: Path | None
    """The checkpoint that the learner was restored from, if there was one."""

    @property
    def run(self) -> Run:
        """The trial."""
        return self.start.run

    @property
    def place(self) -> Place:
        """Where the stage stands in its pipeline."""
        start, base = self.start, Path(self.start.base.source) if self.start.base.is_temporary else None
        return Place(stage=start.next.index, steps_done=start.steps_done, base=base, left=start.left)


@dataclass(frozen=True)
class Tuned:
    """A trial after its last stage, or after one that others follow."""

    opened: Opened
    model: PreTrainedModel
    last: Prepared | None
    """The stage that has ended; None where no stage trains anything."""

    @property
    def run(self) -> Run:
        """The trial."""
        return self.opened.run

    @property
    def base(self) -> BaseModel:
        """What the stage that has ended started from."""
        return self.last.start.base if self.last else self.opened.base

    @property
    def steps_done(self) -> int:
        """Optimiser steps of all stages so far."""
        return self.last.start.steps_done + self.last.start.next.stop_at if self.last else 0


def open_trial(run: Run) -> Opened:
    """Find the base, the tokenizer, the task, and the stages that train something.

    Raises:
        SpecError: When one of them is wrong, or a plug-in refuses the situation.
    """
    process, folders = run.process, run.workspace.task_folders
    with run.meter.phase("load"):
        ready_process(run.workspace.threads)
        base = process.planned_base(run.config.pipeline.base_model, run.workspace)
        tokenizer = process.tokenizer_of(base)
        target = process.planned_task(run.config.task, folders)
        run.notes += target.notes
        situation = Situation(device=run.meter.device, model=process.facts_of(base), task=task_facts(target))
        if reason := refusal(run.config.pipeline, situation):
            raise SpecError(f"this pipeline cannot run on {base.ref.name} here: {reason}")
        template_for(target, process.template_of(base), base.ref.name)
        stages = stage_plans(run.config)
        process.check_named(run.config, folders)
    return Opened(run=run, base=base, tokenizer=tokenizer, target=target, stages=stages)


def stage_plans(config: TrialConfig) -> tuple[StagePlan, ...]:
    """The stages of a trial that train something."""
    plans = []
    for index, stage in enumerate(config.pipeline.stages):
        chosen, steps = choices(stage), config.stage_steps(stage)
        if steps and chosen.method.needs_training:
            stop_at = config.stage_stop(stage)
            plans.append(StagePlan(index=index, stage=stage, chosen=chosen, steps=steps, stop_at=stop_at))
    return tuple(plans)


def begin(opened: Opened) -> Start | Tuned:
    """The trial before its first stage, or where it was interrupted; where no stage trains, the base as it is."""
    run = opened.run
    if opened.stages:
        with run.meter.phase("load"):
            found = midway.find(run)
        return _interrupted(opened, found) if found else Start(opened=opened, stages=opened.stages, base=opened.base)
    with run.meter.phase("load"):
        model = run.process.fresh_model(opened.base, _held(run, opened.base), run.meter.device)
        run.accounts.open_stage(replace(model_size(model), trainable_params=0, trainable_bytes=0))
    return Tuned(opened, model, None)


def _interrupted(opened: Opened, found: Found) -> Start:
    """The trial before the stage in which it was interrupted."""
    made = BaseModel(opened.run.config.pipeline.base_model, str(found.base), is_temporary=True)
    return Start(
        opened=opened,
        stages=tuple(plan for plan in opened.stages if plan.index >= found.standing.stage),
        base=made if found.base.exists() else opened.base,
        steps_done=found.standing.steps_done,
        left=found.left,
        midway=found,
    )


def prepare(start: Start) -> Prepared:
    """Attach the next stage's method to a model and make its learner, at the highest rung that left a checkpoint."""
    run, chosen, source = start.run, start.next.chosen, start.next.stage.data
    with run.meter.phase("load"):
        opened = start.opened
        task = opened.task(TaskRef(source, start.next.stage.data_fingerprint)) if source else opened.target
        held = _held(run, start.base)
        model = run.process.model_for(start.base, chosen.method, chosen.params, run.meter.device, held)
        setup = _setup(start, task, model)
        seed_everything(derive_seed(run.config.seed, "stage", start.next.index, "adapter"))
        weights = Weights.of(model)
        model = chosen.method.attach(model, setup)
        share, of_experts = reach(chosen.method, model, weights)
        tally = run.accounts.open_stage(model_size(model))
    with run.meter.phase("data"):
        rows, sums = run.process.rows_of(task, opened.base), run.process.reference_sums
        learner = make_learner(model, rows, chosen, setup, _watch(start, tally), sums)
        learner.settings = replace(learner.settings, reach=share, reach_experts=of_experts)
    if start.midway:
        with run.meter.phase("load"):
            midway.take_up(run, learner, start.midway)
        return Prepared(start=start, learner=learner, resumed_from=None)
    return Prepared(start=start, learner=learner, resumed_from=_resume(run, learner))


def _resume(run: Run, learner: Learner) -> Path | None:
    """Put the checkpoint of the highest rung below this trial into its learner; its folder, or None."""
    if len(run.config.pipeline.stages) > 1 or not (rung := checkpoint.find(run.workspace.paths, run.config)):
        return None
    with run.meter.phase("load"):
        inherited = run.accounts.inherited = checkpoint.restore(rung, learner)
        run.curve = list(inherited.curve)
        run.execution = replace(run.execution, inherited=Inherited(inherited.key, inherited.total_s))
    return rung


def _setup(start: Start, task: Task, model: PreTrainedModel) -> StageSetup:
    """What the plug-ins of the next stage may use.

    Args:
        start: Where the trial stands.
        task: Whose rows the stage trains on.
        model: What the method will be attached to.
    """
    opened, run, base, plan = start.opened, start.run, start.base, start.next
    process, device, params = run.process, run.meter.device, plan.chosen.params
    max_length = context_length(model.config, params.integer("max_length"), plan.chosen.method.reserved(params))
    load = partial(process.fresh_model, base, {"dtype": model.dtype}, device)
    original = partial(process.fresh_model, opened.base, _held(run, opened.base), device)
    precision = _precision(run, model, opened.base, params.text("precision"))
    return StageSetup(
        params=Params(params, max_length=max_length, precision=precision),
        tokenizer=opened.tokenizer,
        device=device,
        seed=derive_seed(run.config.seed, "stage", plan.index, "data"),
        steps=plan.steps,
        load_base=load,
        corpus=partial(process.corpus_of, opened.base, run.workspace.task_folders, original, run.notes.append),
        generates=task.output_type == "generate_until",
        stops=tuple(dict.fromkeys(stop for leaf in task.leaves for stop in leaf.definition.stops)),
        packed=plan.chosen.objective.packs,
        base="" if base.is_temporary else f"{base.ref.name}@{base.ref.revision}",
        cache=run.workspace.paths.cache,
        tokens=process.tokens,
        note=run.notes.append,
        rows=partial(process.rows_of, task, opened.base),
        rows_of=lambda named: process.rows_of(opened.task(TaskRef(named.name, named.tag)), opened.base),
        model_of=partial(process.named_model, device=device, machine=run.workspace.paths.machine),
        task_metadata=task.metadata,
        left=dict(start.left),
    )


def _held(run: Run, base: BaseModel) -> Options:
    """Load options of a base that is held in float32 because this machine is slow in the type of its checkpoint."""
    options = run.process.held(base, run.meter.device, run.workspace.paths.machine)
    note = f"{base.ref.name} was held in float32, since this machine is slow in the bfloat16 of its checkpoint"
    if options and note not in run.notes:
        run.notes.append(note)
    return options


def _precision(run: Run, model: PreTrainedModel, base: BaseModel, wanted: str) -> str:
    """`auto` as bfloat16 where the base is held in 16 bits, or this machine trains it faster in it, else as float32.

    Args:
        run: The trial.
        model: The model that will train, before its method is attached.
        base: The trial's base, whose revision the measurement holds for.
        wanted: `auto`, or the precision itself.
    """
    if wanted != "auto":
        return wanted
    if model.dtype.itemsize == 2:
        return "bfloat16"
    measurements, folder = run.process.measurements, run.workspace.paths.machine
    faster = measurements.bf16_is_faster(model, run.meter.device, folder, base.ref.revision)
    return "bfloat16" if faster else "float32"


def _watch(start: Start, tally: Tally) -> Watch:
    """Pause at the wanted fractions of the whole pipeline's steps; the last point reuses the final evaluation."""
    run, plan = start.run, start.next
    steps = {step - start.steps_done for step in _scored_steps(run.config)}
    if not plan.chosen.objective.leaves_policy:
        steps = set()  # what it trains is not what the task is asked of
    last = plan.stop_at - (len(start.stages) == 1)
    return Watch(
        stop_at=plan.stop_at,
        score_at=frozenset(step for step in steps if 0 < step <= last),
        meter=run.meter,
        tally=tally,
        time_limit_s=run.workspace.time_limit_s,
    )


def _scored_steps(config: TrialConfig) -> dict[int, float]:
    """Optimiser steps of the whole pipeline after which the learning curve has a point, with their fraction of all."""
    total = config.pipeline_steps
    return {max(1, round(fraction * total)): fraction for fraction in config.evaluation.fractions}


def score_point(prepared: Prepared, outcome: ScoreOutcome) -> None:
    """Add the task's score to the learning curve; one that is not finite is the learner's failure.

    Args:
        prepared: A trial whose stage pauses.
        outcome: Its score.
    """
    learner, outcome = prepared.learner, finite(outcome)
    if isinstance(outcome, Ended):
        learner.failure = outcome
        return
    step = prepared.start.steps_done + learner.step
    fraction = _scored_steps(prepared.run.config)[step]
    prepared.run.add_point(fraction, step, learner.losses.mean, outcome.score.value)
    learner.losses.total, learner.losses.steps, learner.unscored = 0.0, 0, False


def finish(prepared: Prepared) -> Tuned | Ended:
    """Take up a stage that has trained: leave a checkpoint where asked to, and let retention have the last word."""
    learner, run = prepared.learner, prepared.run
    run.execution = replace(run.execution, stages=(*run.execution.stages, stage_settings(learner)))
    run.notes += [note for note in ways_of(learner.model).notes if note not in run.notes]
    if learner.failure is not None:
        return learner.failure
    if (broken := learner.broken_weight()) is not None:
        return broken
    if run.workspace.keep_checkpoint and len(run.config.pipeline.stages) == 1 and run.config.fidelity < 1:
        with run.meter.phase("save"):
            checkpoint.save(run.workspace.paths.checkpoint(run.config.key), learner, run.progress(learner))
            checkpoint.announce(run.workspace.paths, run.config)
    if overrides(learner.choices.retention, "finish"):
        with run.meter.phase("train"):
            learner.model, learner.merged = learner.choices.method.merge(learner.model, learner.setup), True
            learner.choices.retention.finish(learner.model, learner.setup)
    return Tuned(prepared.start.opened, learner.model, prepared)


def hand_on(tuned: Tuned, scratch: Path) -> Start | Tuned:
    """The trial before its next stage, with what the last one made on disk; itself where no stage is left.

    Args:
        tuned: The trial after a stage.
        scratch: Where models may be written that only this trial needs.
    """
    if tuned.last is None or len(tuned.last.start.stages) == 1:
        return tuned
    start, learner, run = tuned.last.start, tuned.last.learner, tuned.run
    folder = scratch / f"{run.config.key}-{start.next.index}"
    base, left = start.base, dict(start.left)
    with run.meter.phase("save"):
        if learner.choices.objective.leaves_policy:
            learner.plain().save_pretrained(folder)
            learner.setup.tokenizer.save_pretrained(folder)
            base = BaseModel(run.config.pipeline.base_model, str(folder), is_temporary=True)
        else:
            learner.choices.objective.leave(learner.plain(), learner.setup, folder)
            left[start.next.stage.objective] = folder
    return Start(opened=tuned.opened, stages=start.stages[1:], base=base, steps_done=tuned.steps_done, left=left)


def keep(tuned: Tuned) -> None:
    """Write the tuned model."""
    folder = tuned.run.workspace.paths.model(tuned.run.config.key)
    with tuned.run.meter.phase("save"):
        if tuned.last is None:
            save_untouched(folder, tuned.model, tuned.opened.tokenizer)
        else:
            save_model(folder, tuned.last.learner, tuned.base, tuned.run.workspace.keeps)
