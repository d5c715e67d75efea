"""A study's names resolved: models, tasks and families as facts, and impossible combinations refused before spending."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.driver.experiment import Experiment, ModelInfo, Site, TaskInfo
from harness.driver.lengths import with_lengths
from harness.driver.memory import refuse_too_large
from harness.errors import SpecError
from harness.models.facts import model_facts, model_features
from harness.space import Text, listed
from harness.study.family import Family, resolved_families
from harness.study.spec import StudySpec
from harness.tasks.facts import TaskFacts, task_facts, task_features

if TYPE_CHECKING:
    from harness.models.base_model import BaseModel
    from harness.tasks.task import Task


def resolve(study: StudySpec, site: Site) -> Experiment:
    """Resolve a study's names and check that every family can work on every model and task.

    Args:
        study: What is asked.
        site: Where its tasks are looked for, and where its trials will run.

    Raises:
        SpecError: For an unknown or broken name, or a combination that a plug-in refuses (with its reason).
    """
    from harness.tasks.corpus import corpus_notes, with_corpus
    from harness.tasks.overlap import refuse_same_rows
    from harness.tasks.task import find_task
    from harness.tasks.training_rows import check_task, notes_of

    # Names first: a misspelt one is refused before rows are rendered, which takes the longest.
    families = resolved_families(study)
    models, refused, notes = _models(study)
    refs = [with_corpus(model, site.task_folders) for model in models]
    tasks = [find_task(name, site.task_folders) for name in study.tasks]
    off_target = [find_task(name, site.task_folders) for name in study.off_target]
    families = {name: _pinned(family, site.task_folders) for name, family in families.items()}
    for name in sorted({stage.spec.data for f in families.values() for stage in f.stages if stage.spec.data}):
        check_task(find_task(name, site.task_folders))
    # Tasks that are only evaluated need no training rows, so they are not checked for any.
    notes += [f"{task.name}: {note}" for task in tasks for note in check_task(task)]
    for leaf in dict.fromkeys(leaf for task in tasks for leaf in task.leaves):
        refuse_same_rows(leaf)
    notes += [f"corpus of {model.ref.name}: {note}" for model in models for note in corpus_notes(model)]
    notes += [f"{task.name}: {note}" for task in off_target for note in notes_of(task)]
    notes += [note for model in models for note in _rendered(model, tasks, off_target)]
    experiment = Experiment(
        spec=study,
        site=site,
        models=tuple(ModelInfo(ref, model_facts(model)) for ref, model in zip(refs, models, strict=True)),
        tasks=tuple(_trained(task) for task in tasks),
        off_target=tuple(_evaluated(task) for task in off_target),
        families=families,
        notes=tuple(notes),
        refused=refused,
        features={
            "tasks": {task.name: task_features(task) for task in tasks},
            "models": {model.ref.name: model_features(model) for model in models},
        },
    )
    refuse_impossible(experiment)
    trained_on = {stage.spec.data for f in families.values() for stage in f.stages if stage.spec.data}
    named = {data: find_task(data, site.task_folders) for data in trained_on}
    counted = with_lengths(experiment, models, named | {task.name: task for task in (*tasks, *off_target)})
    refuse_too_large(counted)
    return counted


def _models(study: StudySpec) -> tuple[list[BaseModel], dict[str, str], list[str]]:
    """The base models that can be used, why the others cannot, and what is to be said of those that can.

    Raises:
        SpecError: When none can be used.
    """
    from harness.models.base_model import resolve_model
    from harness.models.chat import in_template
    from harness.models.soundness import check_model

    models, refused, notes = [], {}, []
    for spec in study.base_models:
        try:
            model = in_template(resolve_model(spec.name, spec.revision, spec.corpus), spec.chat_template)
            notes += check_model(model)
            model_facts(model)
            models.append(model)
        except SpecError as error:
            refused[spec.name] = str(error)
    if not models:
        raise SpecError("; ".join(refused.values()))
    return models, refused, notes


def _rendered(model: BaseModel, tasks: Sequence[Task], off_target: Sequence[Task]) -> Iterator[str]:
    """What a reader must know of how a model reads a study's tasks.

    Raises:
        SpecError: When a task holds chats, and the model has no template for them.
    """
    from harness.models.chat import template_of
    from harness.tasks.chat_rows import chat_notes, template_for

    name, template = model.ref.name, template_of(model)
    if template is not None:
        yield f"{name}: tuned and scored in its chat template ({template.identity[:8]})"
    for task in (*tasks, *off_target):
        template_for(task, template, name)
    for leaf in dict.fromkeys(leaf for task in tasks for leaf in task.leaves):
        for note in chat_notes(leaf, template):
            yield f"{leaf.name} in the chat template of {name}: {note}"


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
    for named in listed(text.default):
        if text.names == "tasks":
            task = find_task(named.pinned, folders)
            task.size("train")  # raises where it has none: it is named for its rows
            tag = task.ref.fingerprint
        else:
            tag = resolve_model(named.pinned).ref.revision
        # The text is a parameter of the trial: with its content in it, other content makes another trial.
        pinned.append(f"{named.pinned}@{tag}={named.weight:g}")
    return ",".join(pinned)


def refuse_impossible(experiment: Experiment) -> None:
    """Check every family on every model and task.

    Raises:
        SpecError: For the first family that a plug-in says cannot work, with its reason.
    """
    from harness.trial.group import refusal

    device, facts_of = experiment.site.device_type, partial(_named_facts, experiment.site.task_folders)
    for family in experiment.families.values():
        for model, task in experiment.arenas:
            situation = Situation(device=device, model=model.facts, task=task.facts, facts_of=facts_of)
            if reason := refusal(family.pipeline(model.ref, {}), situation):
                raise SpecError(
                    f"family {family.name} must be able to run on {model.ref.name} and {task.ref.name}, "
                    f"but {reason}: remove it from the study, or change that choice"
                )


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
    """The facts of a task that is only evaluated."""
    tasks = tuple(dict.fromkeys(task.leaves))
    items = {name: tuple(leaf.size(name) for leaf in tasks) for name in ("validation", "test")}
    return TaskInfo(ref=task.ref, higher_is_better=task.higher_is_better, scale=task.scale, items=items)
