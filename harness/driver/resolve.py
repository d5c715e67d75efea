"""A study's names resolved: models, tasks and families as facts, and impossible combinations refused before spending."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.models.facts import ModelFacts, model_facts, model_features
from harness.plugins import load
from harness.records.paths import Paths
from harness.records.trial import ModelRef, Stage, TaskRef
from harness.runners.base import backend, parse_options
from harness.space import Scalar, Text, weighted
from harness.study.family import Family, resolved_families
from harness.study.spec import StudySpec
from harness.tasks.facts import TaskFacts, task_facts, task_features

if TYPE_CHECKING:
    from harness.tasks.task import Task


@dataclass(frozen=True)
class Site:
    """Where and how trials run; what a study asks is not in it."""

    paths: Paths = field(default_factory=Paths)
    task_folders: tuple[Path, ...] = ()
    runner: str = "local"
    """`inline` (this process), `local` (processes of this machine) or `slurm`."""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`workers` (trials at a time), `threads` (CPU threads of each), and the runner's own, for example `partition`."""
    device: str = "auto"
    display: bool = True
    refresh: bool = False
    """Run again what other versions of the harness or of its libraries have recorded."""
    work: str = "harness.trial.group:warm_up"
    """What workers call, as `module:function`."""


@dataclass(frozen=True)
class ModelInfo:
    """A base model as far as the driver needs it."""

    ref: ModelRef
    facts: ModelFacts = field(default_factory=ModelFacts)


@dataclass(frozen=True)
class TaskInfo:
    """A task as far as the driver needs it."""

    ref: TaskRef
    higher_is_better: bool
    rows: int = 0
    """Training rows; 0 for a task that is only evaluated."""
    chars: float = 0.0
    """Mean characters of a training row."""
    items: Mapping[str, int] = field(default_factory=dict)
    """Items by split."""
    facts: TaskFacts = field(default_factory=TaskFacts)
    """What plug-ins may ask about it."""


@dataclass(frozen=True)
class Setting:
    """Everything that a study names, resolved."""

    models: tuple[ModelInfo, ...]
    tasks: tuple[TaskInfo, ...]
    off_target: tuple[TaskInfo, ...]
    families: Mapping[str, Family]
    notes: tuple[str, ...] = ()
    features: Mapping[Literal["tasks", "models"], Mapping[str, Mapping[str, float | str]]] = field(default_factory=dict)
    """What recommendations will want to know of tasks and models, by name."""

    @property
    def off_target_refs(self) -> tuple[TaskRef, ...]:
        """The off-target suite in the study's order."""
        return tuple(task.ref for task in self.off_target)


def resolve(study: StudySpec, site: Site) -> Setting:
    """Resolve a study's names and check that every family can work on every model and task.

    Raises:
        SpecError: For an unknown or broken name, or a combination that a plug-in refuses (with its reason).
    """
    from harness.models.base_model import resolve_model
    from harness.tasks.task import find_task
    from harness.tasks.training_rows import check_task, with_corpus

    models = [resolve_model(spec.name, spec.revision, spec.corpus) for spec in study.base_models]
    refs = [with_corpus(model, site.task_folders) for model in models]
    tasks = [find_task(name, site.task_folders) for name in study.tasks]
    off_target = [find_task(name, site.task_folders) for name in study.off_target]
    families = {name: _pinned(family, site.task_folders) for name, family in resolved_families(study).items()}
    for name in sorted({stage.spec.data for f in families.values() for stage in f.stages if stage.spec.data}):
        check_task(find_task(name, site.task_folders))
    notes = [f"{task.name}: {note}" for task in tasks for note in check_task(task)]
    setting = Setting(
        tuple(ModelInfo(ref, model_facts(model)) for ref, model in zip(refs, models, strict=True)),
        tuple(_trained(task) for task in tasks),
        tuple(_evaluated(task) for task in off_target),
        families,
        tuple(notes),
        {
            "tasks": {task.name: task_features(task) for task in tasks},
            "models": {model.ref.name: model_features(model) for model in models},
        },
    )
    refuse_impossible(setting, device(site), site.task_folders)
    return setting


def _pinned(family: Family, folders: tuple[Path, ...]) -> Family:
    """The family with what its stages name pinned to the content that it has now."""
    from harness.tasks.task import find_task

    stages = []
    for stage in family.stages:
        named = {
            name: replace(distribution, default=_pinned_names(distribution, folders))
            for name, distribution in stage.space.items()
            if isinstance(distribution, Text) and distribution.names
        }
        data = find_task(stage.spec.data, folders).ref.fingerprint if stage.spec.data else ""
        stages.append(replace(stage, space=dict(stage.space) | named, data_fingerprint=data))
    return replace(family, stages=tuple(stages))


def _pinned_names(text: Text, folders: tuple[Path, ...]) -> str:
    """A list of names, each with the fingerprint or revision of what it names.

    Raises:
        SpecError: For an unknown name, or a task without training rows.
    """
    from harness.models.base_model import resolve_model
    from harness.tasks.task import find_task

    pinned = []
    for name, weight in weighted(text.default):
        if text.names == "tasks":
            task = find_task(name, folders)
            task.split("train")
            tag = task.ref.fingerprint
        else:
            tag = resolve_model(name).ref.revision
        pinned.append(f"{name}@{tag}={weight:g}")
    return ",".join(pinned)


def refuse_impossible(setting: Setting, on: str, folders: tuple[Path, ...] = ()) -> None:
    """Raise `SpecError` for the first family that a plug-in says cannot work; it may name tasks of these folders."""
    from harness.trial.group import refusal

    for family in setting.families.values():
        for model in setting.models:
            for task in setting.tasks:
                situation = Situation(on, model.facts, task.facts, facts_of=partial(_named_facts, folders))
                pipeline = family.pipeline(model.ref, {})
                if reason := refusal(pipeline, situation):
                    raise SpecError(
                        f"family {family.name} must be able to run on {model.ref.name} and {task.ref.name}, "
                        f"but {reason}: remove it from the study, or change that choice"
                    )


def steps_of(study: StudySpec, family: Family, rows: int, params: Mapping[str, Scalar]) -> int:
    """Optimiser steps of a full-fidelity trial: what the budget says, or its examples over the rows of one step.

    With several stages, the rows of one step are the mean over stages, weighted by their shares.
    """
    budget = study.budget
    if budget.steps is not None:
        return budget.steps
    pipeline = family.pipeline(ModelRef("", ""), params)
    if budget.epochs is not None and (stage := next(filter(_counts_otherwise, pipeline.stages), None)):
        raise SpecError(
            f"budget.epochs counts the task's rows, but family {family.name} trains on others ({stage.objective}"
            f"{f' on {stage.data}' if stage.data else ''}): give budget.steps or budget.examples"
        )
    per_step = sum(
        stage.share * int(stage.params["batch_size"]) * int(stage.params["gradient_accumulation"])
        for stage in pipeline.stages
    )
    examples = budget.examples if budget.examples is not None else (budget.epochs or 0.0) * rows
    return max(1, math.ceil(examples / per_step))


def _counts_otherwise(stage: Stage) -> bool:
    """Whether a pass over the task's rows is no pass of this stage: it packs rows, or trains on another task's."""
    return stage.data is not None or load("objectives", stage.objective).packs


def device(site: Site) -> str:
    """`cpu` or `cuda`: where this site's trials run."""
    if site.device != "auto":
        return site.device.split(":")[0]
    return backend(site.runner).device(parse_options(site.runner, site.options))


def _trained(task: Task) -> TaskInfo:
    """The facts of a task that is trained on, from its rendered training rows."""
    from harness.tasks.training_rows import training_rows

    rows = training_rows(task)
    chars = sum(len(row.prompt) + len(row.completion) for row in rows) / max(1, len(rows))
    return replace(_evaluated(task), rows=len(rows), chars=chars, facts=task_facts(task))


def _named_facts(folders: tuple[Path, ...], name: str) -> TaskFacts:
    """The facts of a task that a stage names, with or without what pins it."""
    from harness.tasks.task import find_task

    return task_facts(find_task(name.partition("@")[0], folders))


def _evaluated(task: Task) -> TaskInfo:
    items = {name: len(task.split(name)) for name in ("validation", "test")}
    return TaskInfo(task.ref, task.higher_is_better, items=items)


def corpora(study: StudySpec) -> dict[str, str]:
    """Corpora that the study gives, by base model name."""
    return {spec.name: spec.corpus for spec in study.base_models if spec.corpus}
