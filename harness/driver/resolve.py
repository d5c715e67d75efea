"""A study's names resolved: models, tasks and families as facts, and impossible combinations refused before spending."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.driver.experiment import Experiment, ModelInfo, Site, TaskInfo
from harness.driver.kept import kept
from harness.driver.lengths import with_lengths
from harness.driver.memory import refuse_too_large
from harness.errors import SpecError
from harness.models.facts import model_facts, model_features
from harness.records.codec import Record, to_json
from harness.records.paths import Paths
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
    from harness.tasks.task import find_task
    from harness.tasks.training_rows import notes_of

    # Names first: a misspelt one is refused before rows are rendered, which takes the longest.
    families = resolved_families(study)
    found, refused = _models(study, site.paths)
    models = list(found)
    refs = [with_corpus(model, site.task_folders) for model in models]
    tasks = [find_task(name, site.task_folders) for name in study.tasks]
    off_target = [find_task(name, site.task_folders) for name in study.off_target]
    families = {name: _pinned(family, site.task_folders) for name, family in families.items()}
    trained_on = {stage.spec.data for f in families.values() for stage in f.stages if stage.spec.data}
    named = {data: find_task(data, site.task_folders) for data in sorted(trained_on)}
    # Tasks that are only evaluated need no training rows, so they are not looked through for any.
    for task in named.values():
        _content(task, site.paths)
    contents = [_content(task, site.paths) for task in tasks]
    notes = [note for content in found.values() for note in content.notes]
    notes += [f"{task.name}: {note}" for task, content in zip(tasks, contents, strict=True) for note in content.notes]
    notes += [f"corpus of {model.ref.name}: {note}" for model in models for note in corpus_notes(model)]
    notes += [f"{task.name}: {note}" for task in off_target for note in notes_of(task)]
    experiment = Experiment(
        spec=study,
        site=site,
        models=tuple(
            ModelInfo(ref, model_facts(model), content.context)
            for ref, (model, content) in zip(refs, found.items(), strict=True)
        ),
        tasks=tuple(_trained(task, content) for task, content in zip(tasks, contents, strict=True)),
        off_target=tuple(_evaluated(task) for task in off_target),
        families=families,
        notes=tuple(notes),
        refused=refused,
        features={
            "tasks": {task.name: content.features for task, content in zip(tasks, contents, strict=True)},
            "models": {model.ref.name: model_features(model) for model in models},
        },
    )
    refuse_impossible(experiment)
    counted = with_lengths(experiment, models, named | {task.name: task for task in (*tasks, *off_target)})
    refuse_too_large(counted)
    return counted


@dataclass(frozen=True, kw_only=True)
class ModelContent(Record):
    """What only loading a base model's config and tokenizer tells."""

    notes: tuple[str, ...]
    """What a reader of its scores must know."""
    template: str
    """Identity of the chat template that it is tuned and scored in; empty for plain text."""
    context: int | None


def _models(study: StudySpec, paths: Paths) -> tuple[dict[BaseModel, ModelContent], dict[str, str]]:
    """The base models that can be used, and why the others cannot.

    Raises:
        SpecError: When none can be used.
    """
    from harness.models.base_model import resolve_model

    found, refused = {}, {}
    for spec in study.base_models:
        try:
            model = resolve_model(spec.name, spec.revision, spec.corpus)
            depends = [to_json(model.ref), spec.chat_template]
            content = kept(paths, ModelContent, depends, partial(_look_into, model, spec.chat_template))
            model = replace(model, ref=replace(model.ref, chat_template=content.template))
            model_facts(model)
            found[model] = content
        except SpecError as error:
            refused[spec.name] = str(error)
    if not found:
        raise SpecError("; ".join(refused.values()))
    return found, refused


def _look_into(model: BaseModel, in_turns: bool | None) -> ModelContent:
    """Check a base model against itself.

    Args:
        model: It, before anything was said of chat templates.
        in_turns: Whether its chat template is used; None for one that it has.
    """
    from harness.models.base_model import load_config, stated_context
    from harness.models.chat import in_template
    from harness.models.soundness import check_model

    template = in_template(model, in_turns).ref.chat_template
    return ModelContent(notes=tuple(check_model(model)), template=template, context=stated_context(load_config(model)))


@dataclass(frozen=True, kw_only=True)
class TaskContent(Record):
    """What only reading all of a task's rows tells."""

    notes: tuple[str, ...]
    """What a reader of its scores must know."""
    rows: int
    """That are trained on."""
    chars: float
    """Mean characters of such a row."""
    features: Mapping[str, float | str]
    """What recommendations compare tasks by."""


def _content(task: Task, paths: Paths) -> TaskContent:
    """What a task holds that is trained on; its name is part of what is said of it."""
    return kept(paths, TaskContent, [to_json(task.ref)], partial(_read_through, task))


def _read_through(task: Task) -> TaskContent:
    from harness.tasks.overlap import refuse_same_rows
    from harness.tasks.training_rows import check_task, training_rows

    notes = check_task(task)
    for leaf in dict.fromkeys(task.leaves):
        refuse_same_rows(leaf)
    rows = training_rows(task)
    chars = sum(len(row.prompt) + len(row.completion) for row in rows) / max(1, len(rows))
    return TaskContent(notes=notes, rows=len(rows), chars=chars, features=task_features(task))


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


def _trained(task: Task, content: TaskContent) -> TaskInfo:
    """The facts of a task that is trained on."""
    return replace(_evaluated(task), rows=content.rows, chars=content.chars, facts=task_facts(task))


def _named_facts(folders: tuple[Path, ...], name: str) -> TaskFacts:
    """The facts of a task that a stage names, with or without what pins it."""
    from harness.tasks.task import find_task

    return task_facts(find_task(name.partition("@")[0], folders))


def _evaluated(task: Task) -> TaskInfo:
    """The facts of a task that is only evaluated."""
    tasks = tuple(dict.fromkeys(task.leaves))
    items = {name: tuple(leaf.size(name) for leaf in tasks) for name in ("validation", "test")}
    return TaskInfo(ref=task.ref, higher_is_better=task.higher_is_better, scale=task.scale, items=items)
