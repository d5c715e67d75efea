"""A stage of one trial, ready to train: its plug-ins, its examples in their order, and where it pauses and ends.

Nothing here knows any plug-in by name: what differs between methods, objectives and retention is behind their hooks.
`sessions` trains what is made here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.batches import step_order
from harness.cost import Meter, Tally
from harness.curation.base import Curation
from harness.errors import Diverged, SpecError, TimedOut, TrialFailure
from harness.methods.base import Method
from harness.objectives.base import Example, Objective
from harness.optimizer import Moments, warmup_steps
from harness.plugins import AXIS_FOLDER, Row, Situation, StageSetup, load
from harness.records import Pipeline, Stage
from harness.retention.base import Retention
from harness.space import Scalar, check, defaults
from harness.spec import stage_space

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from harness.reference import Reference


@dataclass(frozen=True)
class Choices:
    """A stage's plug-ins and its complete parameters."""

    method: Method
    objective: Objective
    retention: Retention
    curation: Curation
    params: Mapping[str, Scalar]


def choices(stage: Stage) -> Choices:
    """Load a stage's plug-ins and fill in its defaults.

    Raises:
        SpecError: For an unknown name or a parameter outside its range.
    """
    names = {axis: getattr(stage, axis) for axis in AXIS_FOLDER}
    plugins = {axis: load(AXIS_FOLDER[axis], name)() for axis, name in names.items()}
    space = stage_space(names)
    check(space, stage.params, f"stage with {stage.method}")
    return Choices(**plugins, params=defaults(space) | dict(stage.params))


def refusal(pipeline: Pipeline, situation: Situation) -> str | None:
    """The reason why a pipeline cannot work in a situation, or None."""
    stages = [choices(stage) for stage in pipeline.stages]
    left: tuple[str, ...] = ()
    for stage, chosen in zip(pipeline.stages, stages, strict=True):
        there = replace(situation.of(stage), left=left)
        left += () if chosen.objective.leaves_policy else (stage.objective,)
        for plugin in (chosen.method, chosen.objective, chosen.retention, chosen.curation):
            if (reason := plugin.skip(there)) is not None:
                return reason
    for stage, chosen in zip(pipeline.stages, stages, strict=True):
        if type(chosen.retention).finish is not Retention.finish and not chosen.method.mergeable:
            return f"retention {stage.retention} changes merged weights, but {stage.method} cannot be merged"
    if not stages[-1].objective.leaves_policy:
        return f"{pipeline.stages[-1].objective} trains no model that a task can score: another stage must follow it"
    for stage, chosen in zip(pipeline.stages[:-1], stages[:-1], strict=True):
        if not chosen.method.mergeable and chosen.objective.leaves_policy:
            return f"{stage.method} cannot be merged into the base, so no stage can follow it: put it last"
    return None


@dataclass
class Losses:
    """Sum and number of steps' losses since the last point of the learning curve."""

    total: float = 0.0
    steps: int = 0

    @property
    def mean(self) -> float | None:
        """Mean loss per step; None before any."""
        return self.total / self.steps if self.steps else None


@dataclass(frozen=True)
class Watch:
    """Where a stage pauses and ends, and what is counted meanwhile."""

    stop_at: int
    """Optimiser steps after which the stage ends (its share of the fidelity); the schedule spans all of its steps."""
    score_at: frozenset[int]
    """Steps after which it pauses to be scored."""
    meter: Meter
    tally: Tally
    time_limit_s: float | None = None


@dataclass(frozen=True)
class Drawn:
    """A trial's part of a forward pass."""

    examples: Sequence[Example]
    reference: np.ndarray | None = None
    """The base's log-probability of each of their sequences, where the objective needs it."""
    apart: Drawn | None = None
    """What the objective shows apart from them, without gradient."""

    def piece(self, place: slice) -> Drawn:
        """Some of its examples, where nothing is shown apart from them."""
        known = self.reference
        if known is not None:
            known = known.reshape(len(self.examples), -1)[place].ravel()
        return Drawn(self.examples[place], known)


@dataclass
class Learner:
    """One trial's stage while it trains."""

    model: PreTrainedModel
    """The attached model."""
    choices: Choices
    setup: StageSetup
    watch: Watch
    rows: list[Row]
    """Curated, with old knowledge mixed in."""
    examples: list[Example] = field(default_factory=list)
    """The rows as tokens, where the objective trains in our own loop."""
    order: np.ndarray | None = None
    """Indices of each step's examples, see `batches.step_order`."""
    reference: Reference | None = None
    """What the base says of them, where the objective needs it."""
    trainer: Any = None
    """TRL's, where the objective trains in its loop."""
    losses: Losses = field(default_factory=Losses)
    step: int = 0
    """Optimiser steps done."""
    moments: Moments = field(default_factory=dict)
    """AdamW's, as they were when the last session was closed; empty before the first step."""
    optimizer_state: dict[str, Any] = field(default_factory=dict)
    """The `state_dict` of an optimiser that the method brings, likewise."""
    failure: TrialFailure | None = None
    merged: bool = False
    """Whether the model is plain already: the method's parameters were merged into it."""
    padded_tokens: int = 0
    """Tokens of its batches as padded alone, which is what its compute is proportional to."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Settings read back from what it really ran with."""

    @property
    def active(self) -> bool:
        """Whether there are steps to do."""
        return self.failure is None and self.step < self.watch.stop_at

    @property
    def until_pause(self) -> int:
        """Steps to its next score point, or to its end."""
        return min(step for step in (*self.watch.score_at, self.watch.stop_at) if step > self.step) - self.step

    @property
    def batch(self) -> tuple[int, int]:
        """Examples of a forward pass, and forward passes of a step."""
        return int(self.setup.params["batch_size"]), int(self.setup.params["gradient_accumulation"])

    def plain(self) -> PreTrainedModel:
        """What it trained as a model that plain `transformers` can load."""
        return self.model if self.merged else self.choices.method.merge(self.model, self.setup)

    def spare_memory(self) -> bool:
        """Recompute activations in the backward pass from now on; False where that is done already, or not known how."""
        if self.facts.get("recomputes") or not getattr(self.model, "supports_gradient_checkpointing", False):
            return False
        self.model.zero_grad(set_to_none=True)
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.facts["recomputes"] = True
        self.setup.note("activations were computed again in the backward pass, since memory did not suffice for them")
        return True

    def check_time(self) -> None:
        """Raise `TimedOut` when the trial's time is used up."""
        limit = self.watch.time_limit_s
        if limit is not None and self.watch.meter.total_s > limit:
            raise TimedOut(
                f"the trial's {limit:g} s were used up at step {self.step}: raise the limit or lower the budget"
            )

    def check_weights(self) -> None:
        """Raise `Diverged` when a trained weight is not finite."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                raise Diverged(f"{name} holds a value that is not finite after training: lower the learning rate")

    def next_examples(self) -> list[Example]:
        """Those of the next step, in forward passes of `batch[0]` each."""
        assert self.order is not None
        return [self.examples[index] for index in self.order[self.step]]

    def drawn(self, number: int) -> Drawn:
        """Its part of one of the next step's forward passes."""
        size, known = self.batch[0], self.reference
        place = slice(number * size, (number + 1) * size)
        examples = self.next_examples()[place]
        beside = self.choices.objective.apart(examples, self.setup)
        if known is None:
            return Drawn(examples, apart=Drawn(beside) if beside else None)
        assert self.order is not None
        apart = Drawn(beside, known.apart[self.step, number]) if beside else None
        return Drawn(examples, known.examples[self.order[self.step, place]].ravel(), apart)

    def count(self, examples: Sequence[Example]) -> None:
        """Count the examples of a forward pass that was trained on."""
        sequences = [sequence for example in examples for sequence in example]
        self.watch.tally.count(sequences)
        self.padded_tokens += len(sequences) * max(len(s.input_ids) for s in sequences)


def learner(model: PreTrainedModel, rows: list[Row], chosen: Choices, setup: StageSetup, watch: Watch) -> Learner:
    """A stage ready to train: rows curated, old knowledge mixed in, and tokenised.

    Raises:
        SpecError: When there is nothing to learn.
    """
    if type(chosen.curation).tokens is not Curation.tokens and not chosen.objective.supervises_tokens:
        raise SpecError(
            "a curation that chooses tokens must be beside an objective with loss on single tokens, but the stage's "
            "has none: use objective sft or continued_pretraining"
        )
    rows = chosen.retention.rows(chosen.curation.rows(rows, setup), setup)
    one = Learner(model, chosen, setup, watch, rows)
    if not chosen.objective.fuses:
        from harness.trainer_engine import trainer_for

        one.trainer = trainer_for(one)
        return one
    one.examples = chosen.curation.tokens(chosen.objective.examples(rows, setup), setup)
    if not one.examples:
        raise SpecError(
            f"training needs at least one row with something to learn within {setup.params['max_length']} tokens, but none "
            f"of {len(rows)} has: check the task, and what else takes tokens of the context"
        )
    lengths = tuple(max(len(s.input_ids) for s in example) for example in one.examples)
    size, passes = one.batch
    one.order = step_order(lengths, size * passes, setup.steps, setup.seed)
    if chosen.objective.needs_reference:
        from harness.reference import reference_of

        one.reference = reference_of(one)
    return one


def resolve_precision(precision: str, device: str) -> str:
    """`auto` as `bfloat16` on a GPU that computes in it, `float32` elsewhere."""
    import torch

    if precision != "auto":
        return precision
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"


def facts(one: Learner) -> dict[str, Any]:
    """What a stage really runs with, for the record."""
    setup, params = one.setup, one.setup.params
    return {
        "learning_rate": params["learning_rate"],
        "weight_decay": params["weight_decay"],
        "schedule": params["schedule"],
        "warmup_steps": warmup_steps(params, setup.steps),
        "scheduled_steps": setup.steps,
        "rows": len(one.examples),
        "batch": list(one.batch),
        "bf16": resolve_precision(str(params["precision"]), setup.device) == "bfloat16",
        "seed": setup.seed,
    }


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random states of python, numpy and torch back as they were."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
