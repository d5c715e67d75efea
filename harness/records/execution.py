"""How a trial was really run: settings read back from the libraries' objects, and what it did not do by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.records.codec import Record, added


@dataclass(frozen=True, kw_only=True)
class StageSettings(Record):
    """What a stage really ran with; fields at their defaults were not reached."""

    steps: int = 0
    """Optimiser steps done by this job and the rungs before it."""
    scheduled_steps: int | None = None
    """Optimiser steps that the learning-rate schedule spans."""
    warmup_steps: int | None = None
    optimizer: str = ""
    """Class of the optimiser."""
    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: str = ""
    rows: int | None = None
    """Examples in the training data, after curation."""
    batch: tuple[int, ...] = ()
    """Examples of a forward pass, and forward passes of an optimiser step."""
    bf16: bool = False
    """Whether forward passes ran under bfloat16 autocast."""
    seed: int | None = None
    weights: str = ""
    """Type of the model's weights, for example `float32`."""
    recomputes: bool = added(False)
    """Whether activations were computed again in the backward pass, to save memory."""
    pass_examples: int | None = added(None)
    """Most examples of a forward pass, where memory did not suffice for those of `batch`; a step's examples are the same."""
    reach: float | None = added(None)
    """Share of the base's weights that the method moves, or in whose place it stands; 0 where what it trains is beside
    the base. None in records from before this was noted."""
    reach_experts: float | None = added(None)
    """The same share of the weights of a mixture's experts; None where there are none."""
    adapter: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """PEFT's configuration of each adapter, without settings that are empty."""
    observed: Mapping[str, Any] | None = added(None)
    """What a trainer of TRL's has seen beside losses, for example mean rewards; None where it has seen nothing."""


@dataclass(frozen=True)
class Inherited(Record):
    """The rung that a trial went on from, whose cost is in that rung's record."""

    key: str
    """The rung's trial."""
    seconds: float
    """Wall seconds of all its phases, and of the rungs before it."""


@dataclass(frozen=True)
class Resumed(Record):
    """What a trial went on from that was interrupted: its own checkpoints, whose cost is in its record."""

    steps: tuple[int, ...] = ()
    """Optimiser steps of the pipeline after which it went on, one for each interruption."""
    seconds: float = 0.0
    """Wall seconds of the interrupted attempts that are among those of the record, up to their checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Execution(Record):
    """How a trial was really run."""

    device: str = ""
    """`cpu` or `cuda`."""
    threads: int | None = None
    stages: tuple[StageSettings, ...] = ()
    """The stages that trained, in their order."""
    inherited: Inherited | None = added(None)  # noqa: RUF009  it makes a field
    resumed: Resumed | None = added(None)  # noqa: RUF009
    """The interruptions that it went on after; None where it ran without any."""
    latency_s: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds of generating an item's answers, by task."""
    peak_memory_from: str = ""
    """How peak memory was measured."""
    alone: str | None = added(None)
    """Why it could not train together with others; None where it could."""
