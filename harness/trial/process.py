"""What a trial needs of its process: device, threads, imports, and what the process keeps for its next trial.

A worker runs many trials and makes one `WarmProcess`, which is passed to all of them: base weights, tokenizers, tasks,
token ids, laid-out requests and measurements are paid for once. It stays in its process; nothing of it is written down.
A function of constants (the plug-ins of a folder, a library's version, a class made after a late import) and a function
of frozen values that nobody changes (a task's rows) may be cached where it is defined; everything else is kept here.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cost.meter import Meter
from harness.errors import SpecError
from harness.evaluation.evaluate import Evaluator
from harness.methods.base import Method, Options
from harness.models.base_model import BaseModel, load_model, load_tokenizer, resolve_model
from harness.models.chat import ChatTemplate, chat_template
from harness.models.facts import model_facts
from harness.models.tokens import TokenCache
from harness.nn.determinism import random_state_kept
from harness.plugins import AXIS_FOLDER
from harness.records.trial import ModelRef, TaskRef, TrialConfig
from harness.space import Named, Params, Text
from harness.study.family import stage_space
from harness.tasks.chat_rows import template_for
from harness.tasks.corpus import corpus_path, text_rows, with_corpus
from harness.tasks.lm_eval_task import import_lm_eval
from harness.tasks.task import Task, find_task
from harness.tasks.training_rows import Row, training_rows
from harness.training.reference import ReferenceSums
from harness.training.solo_cost import SoloCosts
from harness.trial.hardware import Measurements
from harness.trial.room import Room
from harness.trial.self_samples import sampled_texts
from harness.trial.workspace import Workspace

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


KEPT_BYTES = 1 << 30
"""Bases up to this size are kept in main memory as they were loaded; larger ones are read again where a copy is needed."""


def pick_device(wanted: str) -> str:
    """`auto` as `cuda` where there is one; of several GPUs the first that is visible, unless the job chose."""
    if wanted == "cpu":
        return "cpu"
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if chosen is None else chosen.split(",")[0]
    import torch

    available = torch.cuda.is_available()
    if chosen is None and not available:
        del os.environ["CUDA_VISIBLE_DEVICES"]  # else whoever asks this process later would believe that there is a GPU
    if wanted == "cuda" and not available:
        raise SpecError("device must be one that torch sees, but got 'cuda' without any: use device cpu or auto")
    return "cuda" if available else "cpu"


def ready_process(threads: int) -> None:
    """Imports that every trial needs, and the threads it may use."""
    import torch

    _import_libraries()
    torch.set_num_threads(threads)


@cache
def _import_libraries() -> None:
    """Seconds of import, charged to load."""
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    import_lm_eval()
    # Libraries hold half a million objects that never end: without them a collection, one for each trial at least,
    # takes no time instead of .3 s.
    gc.freeze()
    atexit.register(gc.unfreeze)  # else bindings complain at exit that what they made was never freed


def release_memory() -> None:
    """Free what earlier trials left: trainers are cycles that only the collector ends, and their memory is large."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _loaded(base: BaseModel, dtype: str) -> PreTrainedModel:
    import torch

    return load_model(base, {"dtype": getattr(torch, dtype)}, "cpu")


class WarmProcess:
    """What a process keeps for its next trial; made once per worker.

    Attributes:
        tokens: Texts that were tokenised.
        evaluator: Scores models; keeps tasks' items and laid-out requests.
        measurements: Of this machine.
        solo_costs: What trials would take alone.
        room: What fitted into its device.
        reference_sums: The bases' log-probabilities.
        imports: What getting ready took; None before, and an empty meter once it has been charged to a trial.
    """

    def __init__(self) -> None:
        self.tokens = TokenCache()
        self.evaluator = Evaluator(self.tokens)
        self.measurements = Measurements()
        self.solo_costs = SoloCosts()
        self.room = Room()
        self.reference_sums: ReferenceSums = {}
        self.imports: Meter | None = None
        self.facts_of = lru_cache(maxsize=8)(model_facts)
        self.tokenizer_of = lru_cache(maxsize=2)(load_tokenizer)
        self._rows = lru_cache(maxsize=8)(training_rows)
        self._model = lru_cache(maxsize=8)(resolve_model)
        self._task = lru_cache(maxsize=32)(find_task)
        self._with_corpus = lru_cache(maxsize=8)(with_corpus)
        self._pristine = lru_cache(maxsize=1)(_loaded)
        """A base's weights by their type, never handed out themselves."""
        self._resident: tuple[tuple[BaseModel, str, str], PreTrainedModel] | None = None
        """The frozen base that trials share, with its load options and device; one at a time."""
        self._sampled: dict[BaseModel, list[Row]] = {}

    def get_ready(self, workspace: Workspace) -> None:
        """Import what the first trial will need; it is charged for that."""
        meter = Meter("cpu")
        with meter.phase("load"):
            pick_device(workspace.device)
            ready_process(workspace.threads)
        self.imports = meter

    def planned_model(self, name: str, revision: str, corpus: str | None = None) -> BaseModel:
        """A model that must be what it was when the study was planned.

        Args:
            name: Of the model.
            revision: What it was planned with; empty for whatever it is now.
            corpus: What the study gives for it, if anything.

        Raises:
            SpecError: When there is none, or its content is another now.
        """
        model = self._model(name, revision or None, corpus)
        if revision and model.ref.revision != revision:
            raise SpecError(
                f"model {name!r} must be the one that was planned with (revision {revision}), but its content is now "
                f"{model.ref.revision}: restore it, or plan the study again"
            )
        return model

    def template_of(self, base: BaseModel) -> ChatTemplate | None:
        """The chat template that a base is tuned and scored in; None where that is plain text."""
        return chat_template(self.tokenizer_of(base), base.ref.name) if base.ref.chat_template else None

    def rows_of(self, task: Task, base: BaseModel) -> list[Row]:
        """A task's training rows as a base reads them; not to be changed.

        Raises:
            SpecError: When they are chats, and the base has no template for them.
        """
        return self._rows(task, template_for(task, self.template_of(base), base.ref.name))

    def planned_base(self, ref: ModelRef, workspace: Workspace) -> BaseModel:
        """A trial's base, with the corpus that its study gave; both must be what they were when the study was planned.

        Raises:
            SpecError: When they are not.
        """
        base = self.planned_model(ref.name, ref.revision, workspace.corpora.get(ref.name))
        if ref.corpus and (corpus := self._with_corpus(base, workspace.task_folders).corpus) != ref.corpus:
            raise SpecError(
                f"the corpus of {ref.name!r} must be the one that was planned with ({ref.corpus}), but is now "
                f"{corpus or 'none'}: restore it, or plan the study again"
            )
        return replace(base, ref=replace(base.ref, chat_template=ref.chat_template))

    def planned_task(self, ref: TaskRef, folders: tuple[Path, ...]) -> Task:
        """A task that must be what it was when the study was planned.

        Raises:
            SpecError: When there is none, or its file or data are others now.
        """
        task = self._task(ref.name, folders)
        if ref.fingerprint and task.ref.fingerprint != ref.fingerprint:
            raise SpecError(
                f"task {ref.name!r} must be the one that was planned with ({ref.fingerprint}), but it is now "
                f"{task.ref.fingerprint}: restore its file and data, or plan the study again"
            )
        return task

    def check_named(self, config: TrialConfig, folders: tuple[Path, ...]) -> None:
        """Find what a trial names beside its base and its task, before anything is spent on it.

        Raises:
            SpecError: When it is not there, or not what it was when the study was planned.
        """
        for ref in config.evaluation.off_target:
            self.planned_task(ref, folders)
        for stage in config.pipeline.stages:
            if stage.data:
                self.planned_task(TaskRef(stage.data, stage.data_fingerprint), folders)
            for parameter, text in stage_space({axis: getattr(stage, axis) for axis in AXIS_FOLDER}).items():
                if not isinstance(text, Text) or not text.names:
                    continue
                for named in Params(stage.params).names(parameter, text.default):
                    if text.names == "tasks":
                        self.planned_task(TaskRef(named.name, named.tag), folders)
                    else:
                        self.planned_model(named.name, named.tag)

    def fresh_model(self, base: BaseModel, options: Mapping[str, Any], device: str) -> PreTrainedModel:
        """A copy of the base that may be changed.

        Args:
            base: A resolved model.
            options: Further keyword arguments of `from_pretrained`.
            device: `cpu` or `cuda`.
        """
        facts = self.facts_of(base)
        held = str(options.get("dtype", facts.dtype)).removeprefix("torch.")
        if options.keys() - {"dtype"} or base.is_temporary or facts.bytes_in(held) > KEPT_BYTES:
            return load_model(base, options, device)
        return deepcopy(self._pristine(base, held)).to(device)

    def model_for(
        self, base: BaseModel, method: Method, params: Params, device: str, otherwise: Options | None = None
    ) -> PreTrainedModel:
        """A model that the method may be attached to: a copy of the base, or one that shares its weights if it leaves them.

        Args:
            base: A resolved model.
            method: What will be attached.
            params: The method's.
            device: `cpu` or `cuda`.
            otherwise: Load options where the method has none of that name.
        """
        from harness.nn.stack import twin  # that module needs torch when it is imported

        options = dict(otherwise or {}) | method.load_options(params, device)
        if not method.shares_base or base.is_temporary:
            return self.fresh_model(base, options, device)
        key = (base, repr(options), device)
        if self._resident is None or self._resident[0] != key:
            self._resident = None  # its memory is free before the next one takes as much
            self._resident = key, self.fresh_model(base, options, device).requires_grad_(False)
        return twin(self._resident[1])

    def held(self, base: BaseModel, device: str, machine: Path) -> Options:
        """Load options of a base that is held in float32, because this machine emulates the type of its checkpoint.

        Args:
            base: A resolved model.
            device: `cpu` or `cuda`.
            machine: Where measurements are kept, `Paths.machine`.
        """
        import torch

        fits = self.facts_of(base).dtype == "float32" or self.measurements.computes_in_bf16(device, machine)
        return {} if fits else {"dtype": torch.float32}

    def named_model(self, named: Named, device: str, machine: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Another model and its tokenizer; the arguments are those of `held`."""
        base = self.planned_model(named.name, named.tag)
        return load_model(base, self.held(base, device, machine), device), self.tokenizer_of(base)

    def corpus_of(
        self,
        base: BaseModel,
        folders: tuple[Path, ...],
        load: Callable[[], PreTrainedModel],
        note: Callable[[str], None],
    ) -> list[Row]:
        """Rows of what the base knows: its corpus, or texts sampled from it, which is noted.

        Args:
            base: A resolved model.
            folders: Where tasks are looked for, since a corpus may be a task.
            load: Gives a copy of it.
            note: Adds a sentence to the record.
        """
        if base.corpus is None:
            note(f"the study names no corpus for {base.ref.name}: replayed texts were sampled from it")
            return self._sampled_from(base, load)
        if path := corpus_path(base.corpus):
            return text_rows(path)
        return [Row(completion=row.text) for row in self.rows_of(self._task(base.corpus, folders), base)]

    def _sampled_from(self, base: BaseModel, load: Callable[[], PreTrainedModel]) -> list[Row]:
        """Texts sampled from the base, for replay without a corpus."""
        if base not in self._sampled:
            with random_state_kept():
                self._sampled[base] = sampled_texts(load(), self.tokenizer_of(base))
        return self._sampled[base]
