"""A stage of one trial, ready to train: its plug-ins, its examples in their order, and where it pauses and ends.

Nothing here knows any plug-in by name: what differs between methods, objectives and retention is behind their hooks.
`prepare` makes a learner, a `Session` or a trainer of TRL's trains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.axes.contract import StageSetup
from harness.cost.meter import Meter, Tally
from harness.nn.determinism import resolve_precision
from harness.nn.optimizer import Moments, warmup_steps
from harness.nn.sequences import Example
from harness.records.execution import StageSettings
from harness.records.trial import Ended, TrialStatus
from harness.tasks.training_rows import Row
from harness.training.choices import Choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Losses:
    """Sum and number of steps' losses since the last point of the learning curve."""

    total: float = 0.0
    steps: int = 0

    @property
    def mean(self) -> float | None:
        """Mean loss per step; None before any."""
        return self.total / self.steps if self.steps else None


@dataclass(frozen=True, kw_only=True)
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
class Part:
    """A learner's part of a forward pass."""

    examples: Sequence[Example]
    reference: np.ndarray | None = None
    """The base's log-probability of each of their sequences, shape (sequences,), where the objective needs it."""
    apart: Part | None = None
    """What the objective shows apart from them, without gradient."""

    def piece(self, place: slice) -> Part:
        """Some of its examples, where nothing is shown apart from them."""
        reference = self.reference
        if reference is not None:
            reference = reference.reshape(len(self.examples), -1)[place].ravel()
        return Part(self.examples[place], reference)


@dataclass(kw_only=True)
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
    order: np.ndarray = field(default_factory=lambda: np.empty((0, 0), dtype=int))
    """Indices of each step's examples, shape (steps, examples of a step), see `batches.step_order`."""
    reference: Reference | None = None
    """What the base says of them, where the objective needs it."""
    trainer: Any = None
    """TRL's, where the objective trains in its loop."""
    losses: Losses = field(default_factory=Losses)
    step: int = 0
    """Optimiser steps done."""
    unscored: bool = False
    """Whether it stands at a pause and was not scored there yet."""
    moments: Moments = field(default_factory=dict)
    """AdamW's, as they were when the last session was closed; empty before the first step."""
    optimizer_state: dict[str, Any] = field(default_factory=dict)
    """The `state_dict` of an optimiser that the method brings, likewise."""
    failure: Ended | None = None
    """What ended it before its last step, if anything did."""
    merged: bool = False
    """Whether the model is plain already: the method's parameters were merged into it."""
    padded_tokens: int = 0
    """Tokens of its batches as padded alone, which is what its compute is proportional to."""
    settings: StageSettings = field(default_factory=StageSettings)
    """What it really runs with, as far as it is known."""

    @property
    def active(self) -> bool:
        """Whether there are steps to do."""
        return self.failure is None and self.step < self.watch.stop_at

    @property
    def due(self) -> bool:
        """Whether it is to be scored before its next step."""
        return self.failure is None and self.unscored

    @property
    def until_pause(self) -> int:
        """Steps to its next score point, or to its end."""
        return min(step for step in (*self.watch.score_at, self.watch.stop_at) if step > self.step) - self.step

    @property
    def batch(self) -> tuple[int, int]:
        """Examples of a forward pass, and forward passes of a step."""
        return self.setup.params.integer("batch_size"), self.setup.params.integer("gradient_accumulation")

    def plain(self) -> PreTrainedModel:
        """What it trained as a model that plain `transformers` can load."""
        return self.model if self.merged else self.choices.method.merge(self.model, self.setup)

    def cut_passes(self) -> bool:
        """Halve the examples of a forward pass from now on, and accumulate over more; False where it has one already."""
        size = self.settings.pass_examples or self.batch[0]
        if size == 1:
            return False
        if self.settings.pass_examples is None:
            self.setup.note("forward passes were cut into smaller ones, since memory did not suffice")
        self.model.zero_grad(set_to_none=True)
        self.settings = replace(self.settings, pass_examples=(size + 1) // 2)
        return True

    def spare_memory(self) -> bool:
        """Recompute activations in the backward pass from now on; False where that is done already, or not known how."""
        if self.settings.recomputes or not getattr(self.model, "supports_gradient_checkpointing", False):
            return False
        self.model.zero_grad(set_to_none=True)
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.settings = replace(self.settings, recomputes=True)
        self.setup.note("activations were computed again in the backward pass, since memory did not suffice for them")
        return True

    def overtime(self) -> Ended | None:
        """The end of the trial where its time is used up."""
        limit = self.watch.time_limit_s
        if limit is None or self.watch.meter.total_s <= limit:
            return None
        reason = f"the trial's {limit:g} s were used up at step {self.step}: raise the limit or lower the budget"
        return Ended(TrialStatus.TIMED_OUT, reason)

    def broken_weight(self) -> Ended | None:
        """The end of the trial where a trained weight is not finite."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(parameter.isfinite().all()):
                reason = f"{name} holds a value that is not finite after training: lower the learning rate"
                return Ended(TrialStatus.DIVERGED, reason)
        return None

    def next_examples(self) -> list[Example]:
        """Those of the next step, in forward passes of `batch[0]` each."""
        return [self.examples[index] for index in self.order[self.step]]

    def part(self, number: int) -> Part:
        """Its part of the next step's forward pass of that number, counting from 0."""
        size, reference = self.batch[0], self.reference
        place = slice(number * size, (number + 1) * size)
        examples = self.next_examples()[place]
        beside = self.choices.objective.apart(examples, self.setup)
        if reference is None:
            return Part(examples, apart=Part(beside) if beside else None)
        apart = Part(beside, reference.apart[self.step, number]) if beside else None
        return Part(examples, reference.examples[self.order[self.step, place]].ravel(), apart)

    def count(self, examples: Sequence[Example]) -> None:
        """Count the examples of a forward pass that was trained on."""
        sequences = [sequence for example in examples for sequence in example]
        self.watch.tally.count(sequences)
        self.padded_tokens += len(sequences) * max(len(s.input_ids) for s in sequences)


def not_finite(name: str, value: float, step: int) -> Ended | None:
    """The end of a trial whose loss or gradient norm is not finite.

    Args:
        name: What it is.
        value: How large it was.
        step: After which optimiser step, counting from 1.
    """
    if math.isfinite(value):
        return None
    return Ended(TrialStatus.DIVERGED, f"{name} became {value} at step {step}: lower the learning rate")


def settings_of(learner: Learner, optimizer: str) -> StageSettings:
    """What a stage really runs with in the harness's own loop.

    Args:
        learner: The stage.
        optimizer: Class of its optimiser.
    """
    setup, params = learner.setup, learner.setup.params
    return replace(
        learner.settings,
        optimizer=optimizer,
        learning_rate=params.number("learning_rate"),
        weight_decay=params.number("weight_decay"),
        schedule=params.text("schedule"),
        warmup_steps=warmup_steps(params, setup.steps),
        scheduled_steps=setup.steps,
        rows=len(learner.examples),
        batch=learner.batch,
        bf16=resolve_precision(params.text("precision"), setup.device) == "bfloat16",
        seed=setup.seed,
    )


@dataclass(frozen=True)
class Reference:
    """The base's summed log-probabilities."""

    examples: np.ndarray
    """Of each sequence of each example, shape (examples, sequences)."""
    apart: np.ndarray
    """Of what the objective shows apart from each forward pass, shape (steps to do, passes, sequences)."""
