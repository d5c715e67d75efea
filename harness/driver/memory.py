"""What memory the trials of an experiment need, each by its own methods, batch and rows (see `cost/layout`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.cost.memory import CONTEXT_BYTES, MARGIN, PROCESS_BYTES, Layout, Load, Memory
from harness.driver.experiment import Experiment, ModelInfo, TaskInfo
from harness.driver.kept import kept
from harness.errors import SpecError
from harness.plugins import code_hash
from harness.records.codec import fingerprint, to_json
from harness.records.trial import ModelRef, Stage, TrialConfig
from harness.search.cell import Cell
from harness.space import Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.models.base_model import BaseModel
    from harness.training.choices import Choices


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FamilyMemory:
    """What memory a family's trials need on one base model, at the family's defaults."""

    family: str
    model: str
    memory: Memory

    def text(self) -> str:
        """A line for people."""
        sizes = {f.name: getattr(self.memory, f.name) for f in fields(Memory) if f.type == "float"}
        said = [
            f"{name} {_size(size)}" for name, size in sizes.items() if name != "peak" and size >= self.memory.peak / 100
        ]
        return f"{self.family} on {self.model}: {_size(self.memory.peak)} ({', '.join(filter(None, [*said, self.memory.basis]))})"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


class Needs:
    """Knows what memory the trials of an experiment need; what was found out is kept below the results."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._layouts: dict[str, Layout] = {}
        self._base = lru_cache(_base)

    @cached_property
    def _tasks(self) -> dict[str, TaskInfo]:
        return {task.ref.name: task for task in self.experiment.tasks}

    def of(self, config: TrialConfig, least: bool = False) -> Memory | None:
        """What a trial needs when it trains alone: that of its stage that needs most. None where its base is not known.

        Args:
            config: The trial.
            least: Whether to say what it needs where memory is short, one example at a time and with layers that are
                computed again, instead of what it takes where there is enough.
        """
        try:
            base = self._base(config.pipeline.base_model)
            stages = [self._stage(base, stage, config) for stage in config.pipeline.stages]
        except Exception:  # code of a model or a plug-in that wants more than there is before a trial
            log.debug("what memory %s needs is not known", config.key, exc_info=True)
            return None
        found = [layout.least(load) if least else layout.memory(load) for layout, load in stages]
        return max(found, key=lambda memory: memory.peak)

    def measured(self, config: TrialConfig) -> float | None:
        """What a record of a trial will say of its memory: that of tensors on a GPU, that of the whole process on a CPU."""
        memory = self.of(config)
        if memory is None:
            return None
        return memory.peak + (PROCESS_BYTES if self.experiment.site.device_type == "cpu" else 0)

    def families(self, cells: Sequence[Cell]) -> tuple[FamilyMemory, ...]:
        """Of every family on every base model; those of which nothing is known are left out."""
        most: dict[tuple[str, str], Memory] = {}
        for cell in cells:
            memory, names = (
                self.of(cell.design.config({}, cell.design.top)),
                (cell.design.family.name, cell.design.model.name),
            )
            if memory is not None and (names not in most or memory.peak > most[names].peak):
                most[names] = memory
        return tuple(FamilyMemory(family=f, model=m, memory=memory) for (f, m), memory in most.items())

    def _stage(self, base: BaseModel, stage: Stage, config: TrialConfig) -> tuple[Layout, Load]:
        """What a stage holds, and what its passes are given."""
        from harness.models.base_model import within_context
        from harness.training.choices import choices

        chosen, task = choices(stage), self._tasks[config.task.name]
        limit = within_context(
            self._model(base).context, chosen.params.integer("max_length"), chosen.method.reserved(chosen.params)
        )
        chosen = replace(chosen, params=Params(chosen.params, max_length=limit))
        load = _load(chosen, *task.longest.get(base.ref.name, (limit, limit)))
        if not chosen.method.needs_training:
            load = replace(load, rows=1, example=1, supervised=load.length, accumulates=False)
        return self._layout(base, stage, chosen, load.length), load

    def _layout(self, base: BaseModel, stage: Stage, chosen: Choices, length: int) -> Layout:
        """From this process, from a file below the results, or found out now."""
        precision = chosen.params.text("precision")
        facts = self._model(base).facts
        device = self.experiment.site.device_type
        # A GPU computes in 16 bits faster, whatever the base is held in; see `Measurements.bf16_is_faster`.
        faster = device == "cuda" or (facts.dtype != "float32" and chosen.method.keeps_type(chosen.params))
        half = precision == "bfloat16" or (precision == "auto" and faster)
        code = code_hash("methods", stage.method)
        depends = [to_json(base.ref), stage.method, code, dict(chosen.params), half, length]
        key = fingerprint(depends)
        if key not in self._layouts:
            find = partial(_found_out, base, chosen, facts.dtype, half, length)
            self._layouts[key] = kept(self.experiment.paths, Layout, depends, find)
        return self._layouts[key]

    def _model(self, base: BaseModel) -> ModelInfo:
        return next(model for model in self.experiment.models if model.ref.name == base.ref.name)


def refuse_too_large(experiment: Experiment) -> None:
    """Refuse families whose trials fit the device of no trial at this site, before anything is spent.

    Raises:
        SpecError: With every such family, what it needs, and the remedy.
    """
    room, needs, large = experiment.site.memory, Needs(experiment), {}
    if room is None:
        return
    on_gpu = experiment.site.device_type == "cuda"
    beside = CONTEXT_BYTES if on_gpu else PROCESS_BYTES
    for family in experiment.families.values():
        for model, task in experiment.arenas:
            config = TrialConfig(pipeline=family.pipeline(model.ref, {}), task=task.ref, steps=1)
            least = needs.of(config, least=True)
            if least is not None and (need := MARGIN * least.peak + beside) > room:
                one = FamilyMemory(family=family.name, model=f"{model.ref.name} and {task.ref.name}", memory=least)
                large[one.text()] = need
    if large:
        what = "a single GPU" if on_gpu else "the machine's memory"
        raise SpecError(
            f"every trial must fit {what} of {_size(room)}, but even in the smallest passes that it can be cut into, with "
            f"layers computed again, up to {_size(max(large.values()))} are needed with a margin: {'; '.join(large)}: "
            "shorten max_length, let the base rest (lora) or pack it (qlora), take a smaller base, or, where an objective's "
            "passes cannot be cut, lower batch_size and raise gradient_accumulation"
        )


def _base(ref: ModelRef) -> BaseModel:
    from harness.models.base_model import resolve_model

    return resolve_model(ref.name, ref.revision)


def _load(chosen: Choices, longest: int, answer: int) -> Load:
    """What the passes of a stage are given at most.

    Args:
        chosen: The stage's choices.
        longest: Tokens of the longest row.
        answer: Tokens of the longest answer.
    """
    objective, limit = chosen.objective, chosen.params.integer("max_length")
    length = limit if objective.packs else min(longest, limit)
    example = max(1, len(set(objective.needs) - {"prompt"}))  # sequences of a preference: each of its answers
    rows = example * chosen.params.integer("batch_size")
    # TRL's trainers, and what is packed, have logits at every token.
    supervised = min(answer, length) if objective.fuses and not objective.packs else length
    return Load(
        rows=rows,
        example=example,
        length=length,
        supervised=rows * supervised,
        accumulates=chosen.params.integer("gradient_accumulation") > 1,
        adapts=objective.fuses,
        cuttable=objective.fuses and not objective.compares,
    )


def _found_out(base: BaseModel, chosen: Choices, held: str, half: bool, length: int) -> Layout:
    """The layout of a stage, from its base's config and its method.

    Args:
        base: The base.
        chosen: The stage's choices.
        held: Type of the checkpoint's weights.
        half: Whether it computes in bfloat16.
        length: Tokens of a row.
    """
    from harness.cost.layout import Case, layout
    from harness.models.base_model import load_config, load_tokenizer

    setup = StageSetup(
        params=chosen.params,
        tokenizer=load_tokenizer(base),
        device="cpu",  # none is needed: shapes and types are the same on any
        seed=0,
        steps=1,
        load_base=_nothing_loaded,
        corpus=list,
    )
    case = Case(config=load_config(base), method=chosen.method, setup=setup, held=held, half=half, length=length)
    return layout(case)


def _nothing_loaded() -> PreTrainedModel:
    raise SpecError("a plan must load no weights, but a method asked for them: it is taken as another")
