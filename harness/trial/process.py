"""What a trial needs of its process: device, threads, seeds, and the models, tokenizers and tasks kept for the next.

A worker runs many trials: base weights, tokenizers, tasks and their training rows are loaded once per process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.methods.base import Method
from harness.models.base_model import BaseModel, load_model, load_tokenizer, resolve_model
from harness.models.facts import ModelFacts, model_facts
from harness.plugins import AXIS_FOLDER
from harness.records.trial import ModelRef, TaskRef, TrialConfig
from harness.space import Scalar, Text, weighted
from harness.study.family import stage_space
from harness.tasks.training_rows import Row
from harness.trial.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.tasks.task import Task


def pick_device(wanted: str) -> str:
    """`auto` as `cuda` where there is one; of several GPUs the first that is visible, unless the job chose."""
    if wanted == "cpu":
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    import torch

    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise SpecError("device must be one that torch sees, but got 'cuda' without any: use device cpu or auto")
    return "cuda" if available else "cpu"


def ready_process(threads: int) -> None:
    """Imports that every trial needs, and the threads it may use."""
    import peft  # noqa: F401  seconds of import, charged to load
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401

    from harness.tasks.lm_eval_task import import_lm_eval

    import_lm_eval()

    torch.set_num_threads(threads)


@lru_cache(maxsize=8)
def resolved_model(name: str, revision: str, corpus: str | None) -> BaseModel:
    """The base model that a trial names."""
    return resolve_model(name, revision or None, corpus)


def planned_model(name: str, revision: str, corpus: str | None = None) -> BaseModel:
    """A model that must be what it was when the study was planned.

    Raises:
        SpecError: When there is none, or its content is another now.
    """
    model = resolved_model(name, revision, corpus)
    if revision and model.ref.revision != revision:
        raise SpecError(
            f"model {name!r} must be the one that was planned with (revision {revision}), but its content is now "
            f"{model.ref.revision}: restore it, or plan the study again"
        )
    return model


@lru_cache(maxsize=8)
def _with_corpus(base: BaseModel, folders: tuple[Path, ...]) -> ModelRef:
    from harness.tasks.training_rows import with_corpus

    return with_corpus(base, folders)


def planned_base(ref: ModelRef, workspace: Workspace) -> BaseModel:
    """A trial's base, with the corpus that its study gave; both must be what they were when the study was planned.

    Raises:
        SpecError: When they are not.
    """
    base = planned_model(ref.name, ref.revision, workspace.corpora.get(ref.name))
    if ref.corpus and (found := _with_corpus(base, workspace.task_folders).corpus) != ref.corpus:
        raise SpecError(
            f"the corpus of {ref.name!r} must be the one that was planned with ({ref.corpus}), but is now "
            f"{found or 'none'}: restore it, or plan the study again"
        )
    return base


@lru_cache(maxsize=8)
def facts_of(base: BaseModel) -> ModelFacts:
    """Its sizes and kind."""
    return model_facts(base)


@lru_cache(maxsize=2)
def tokenizer_of(base: BaseModel) -> PreTrainedTokenizerBase:
    """Its tokenizer."""
    return load_tokenizer(base)


@lru_cache(maxsize=1)
def _pristine(base: BaseModel) -> PreTrainedModel:
    """The base's weights in memory, never handed out themselves."""
    return load_model(base, {}, "cpu")


def fresh_model(base: BaseModel, options: Mapping[str, Any], device: str) -> PreTrainedModel:
    """A copy of the base that may be changed."""
    from copy import deepcopy

    if options or base.is_temporary:
        return load_model(base, options, device)
    return deepcopy(_pristine(base)).to(device)


def model_for(base: BaseModel, method: Method, params: Mapping[str, Scalar], device: str) -> PreTrainedModel:
    """A model that the method may be attached to: a copy of the base, or one that shares its weights if it leaves them."""
    from harness.nn.stack import twin

    options = method.load_options(dict(params), device)
    if not method.shares_base or base.is_temporary:
        return fresh_model(base, options, device)
    return twin(_resident(base, repr(options), device, lambda: fresh_model(base, options, device)))


_RESIDENTS: dict[tuple[BaseModel, str, str], PreTrainedModel] = {}


def _resident(base: BaseModel, options: str, device: str, load: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The base that trials share, frozen; one at a time."""
    key = (base, options, device)
    if key not in _RESIDENTS:
        _RESIDENTS.clear()
        _RESIDENTS[key] = load().requires_grad_(False)
    return _RESIDENTS[key]


def release_memory() -> None:
    """Free what earlier trials left: trainers are cycles that only the collector ends, and their memory is large."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@lru_cache(maxsize=2)
def sampled_from(base: BaseModel, device: str) -> list[Row]:
    """Texts sampled from the base, for replay without a corpus."""
    from harness.nn.determinism import random_state_kept
    from harness.trial.self_samples import sampled_texts

    with random_state_kept():
        return sampled_texts(fresh_model(base, {}, device), tokenizer_of(base))


def named_model(name: str, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Another model and its tokenizer, from `name` or `name@revision`."""
    base = planned_model(*name.partition("@")[::2])
    return load_model(base, {}, device), tokenizer_of(base)


@lru_cache(maxsize=32)
def found_task(name: str, folders: tuple[Path, ...]) -> Task:
    """A task by name."""
    from harness.tasks.task import find_task

    return find_task(name, folders)


def planned_task(ref: TaskRef, folders: tuple[Path, ...]) -> Task:
    """A task that must be what it was when the study was planned.

    Raises:
        SpecError: When there is none, or its file or data are others now.
    """
    task = found_task(ref.name, folders)
    if ref.fingerprint and task.ref.fingerprint != ref.fingerprint:
        raise SpecError(
            f"task {ref.name!r} must be the one that was planned with ({ref.fingerprint}), but it is now "
            f"{task.ref.fingerprint}: restore its file and data, or plan the study again"
        )
    return task


def check_named(config: TrialConfig, folders: tuple[Path, ...]) -> None:
    """Find what a trial names beside its base and its task, before anything is spent on it.

    Raises:
        SpecError: When it is not there, or not what it was when the study was planned.
    """
    for ref in config.evaluation.off_target:
        planned_task(ref, folders)
    for stage in config.pipeline.stages:
        if stage.data:
            planned_task(TaskRef(stage.data, stage.data_fingerprint), folders)
        for parameter, text in stage_space({axis: getattr(stage, axis) for axis in AXIS_FOLDER}).items():
            if not isinstance(text, Text) or not text.names:
                continue
            for named, _ in weighted(str(stage.params.get(parameter, text.default))):
                name, tag = named.partition("@")[::2]
                if text.names == "tasks":
                    planned_task(TaskRef(name, tag), folders)
                else:
                    planned_model(name, tag)


@lru_cache(maxsize=8)
def rows_of(task: Task) -> list[Row]:
    """Its training rows; not to be changed."""
    from harness.tasks.training_rows import training_rows

    return training_rows(task)


def corpus_of(base: BaseModel, workspace: Workspace, device: str, note: Callable[[str], None]) -> list[Row]:
    """Rows of what the base knows: its corpus, or texts sampled from it, which is noted."""
    from harness.tasks.training_rows import text_rows

    if base.corpus is None:
        note(f"the study names no corpus for {base.ref.name}: replayed texts were sampled from it")
        return sampled_from(base, device)
    if Path(base.corpus).is_file():
        return text_rows(Path(base.corpus))
    rows = rows_of(found_task(base.corpus, workspace.task_folders))
    return [Row(completion=row.prompt + row.completion) for row in rows]
