"""The contract of a choice on one of the four axes: what it declares, what it is asked, and what it is given."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import SpecError
from harness.models.facts import ModelFacts
from harness.models.tokens import TokenCache
from harness.plugins import AXIS_FOLDER, load
from harness.space import Named, Params, Space
from harness.tasks.facts import TaskFacts
from harness.tasks.metadata import TaskMetadata
from harness.tasks.training_rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.records.trial import Stage


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is known of a trial before anything is spent; a plug-in's `skip` refuses what cannot work there."""

    device: str = "cpu"
    """`cpu` or `cuda`."""
    model: ModelFacts = field(default_factory=ModelFacts)
    """The base's sizes and kind."""
    task: TaskFacts = field(default_factory=TaskFacts)
    """How the task is scored, and what its rows have."""
    beside: Mapping[str, type[Plugin]] = field(default_factory=dict)
    """The stage's plug-ins by axis (`method`, `objective`, `retention`, `curation`); empty where the stage is not known."""
    params: Params = field(default_factory=Params)
    """The stage's parameters as far as they are known."""
    left: tuple[str, ...] | None = None
    """Objectives of earlier stages that leave something beside the policy; None where the pipeline is not known."""
    facts_of: Callable[[str], TaskFacts] = lambda name: TaskFacts()
    """The facts of another task, by the name that a parameter holds."""

    def of(self, stage: Stage) -> Situation:
        """The situation of a stage's plug-ins: `beside` and `params` are its own, `task` is the one whose rows it trains on."""
        chosen = {axis: load(folder, getattr(stage, axis)) for axis, folder in AXIS_FOLDER.items()}
        task = self.facts_of(stage.data) if stage.data else self.task
        return replace(self, task=task, beside=chosen, params=Params(stage.params))


def _nothing_named(named: Named) -> Any:
    raise SpecError(f"{named.name!r} must be known to the trial, but nothing is here: name it in a parameter")


@dataclass(frozen=True, kw_only=True)
class StageSetup:
    """What a plug-in may use while a stage is being set up and run."""

    params: Params
    """Every parameter of the stage, defaults filled in; `max_length` is cut to the model's context already."""
    tokenizer: PreTrainedTokenizerBase
    device: str
    seed: int
    steps: int
    """Optimiser steps of the stage at full budget."""
    load_base: Callable[[], PreTrainedModel]
    """A fresh full-precision copy of the base model, for references and safe merges."""
    corpus: Callable[[], list[Row]]
    """Rows of what the base knows already, see `BaseModel.corpus`; raises `SpecError` where it has none."""
    generates: bool = False
    """Whether the task is scored on generated text, which starts from the prompt's own tokens."""
    stops: tuple[str, ...] = ()
    """Texts at the first of which a generated answer ends when the task is scored; a row's own end is none of them."""
    packed: bool = False
    """Whether the objective joins rows into sequences of `max_length` tokens."""
    base: str = ""
    """Name and revision of the base; empty where an earlier stage made it, so that nothing of it is kept for other trials."""
    cache: Path | None = None
    """Folder for files that took long to compute and can be computed again."""
    tokens: TokenCache = field(default_factory=TokenCache)
    """Texts that this process has tokenised; trials of a worker share them."""
    note: Callable[[str], None] = lambda text: None
    """Adds a sentence to the record's notes, which the reader of a score must know."""
    rows: Callable[[], list[Row]] = list
    """The stage's training rows as the task gives them, before curation; not to be changed."""
    rows_of: Callable[[Named], list[Row]] = _nothing_named
    """Training rows of another task, which a `Text` parameter of tasks names (`params.names`)."""
    model_of: Callable[[Named], tuple[PreTrainedModel, PreTrainedTokenizerBase]] = _nothing_named
    """Another model and its tokenizer, which a `Text` parameter of models names (`params.names`)."""
    task_metadata: TaskMetadata = field(default_factory=TaskMetadata)
    """What the task's file says under `metadata`."""
    left: Mapping[str, Path] = field(default_factory=dict)
    """Folders that earlier stages left beside the policy, by objective (see `Objective.leaves_policy`)."""


class Plugin(ABC):
    """A choice on one of the axes, and what it declares about itself."""

    summary: ClassVar[str]
    """One line: what it does."""
    paper: ClassVar[str] = ""
    """Authors, year and arXiv id or URL of the source; empty when there is none."""
    requires: ClassVar[str] = ""
    """What it needs beyond a base model and rows, in a few words (`a GPU`, `layers with biases`); empty for nothing."""
    space: ClassVar[Space] = {}
    """Its hyperparameters: ranges, defaults from the literature, and which of them a study searches."""

    def skip(self, situation: Situation) -> str | None:
        """The reason why this choice cannot work in this situation, or None."""
        return None
