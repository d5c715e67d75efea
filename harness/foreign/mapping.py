"""A mapping file: which column of a table of runs means what. YAML in, frozen types out, unknown keys refused."""

from __future__ import annotations

from collections.abc import Mapping as AnyMapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from harness.errors import SpecError
from harness.files import read_yaml
from harness.records.trial import TrialStatus
from harness.study.spec import Strict, sentences

UNITS: AnyMapping[str, float] = {
    **{"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0},
    **{"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    **{"thousand": 1e3, "million": 1e6, "billion": 1e9},
}
"""What a value in a unit is multiplied by, to be in seconds, bytes or ones."""

Scalar = str | bool | int | float


class Cell(Strict):
    """Where a value comes from: a column, or one value for all runs. A bare text in a mapping file is a column."""

    column: str | None = Field(None, description="Column of the table.")
    value: Scalar | None = Field(None, description="The value of all runs, where no column has it.")
    unit: Literal[tuple(UNITS)] | None = Field(None, description="Unit of the column's numbers.")  # type: ignore[valid-type]
    map: dict[str, Scalar] = Field(default_factory=dict, description="What values of the column mean; others stay.")

    @model_validator(mode="after")
    def _one_of_both(self) -> Cell:
        if (self.column is None) == (self.value is None):
            raise ValueError("it must name exactly one of column and value: remove or add one")
        return self


def _as_cell(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


From = Annotated[Cell, BeforeValidator(_as_cell)]


class ScoreColumn(Strict):
    """A score of every run."""

    column: str = Field(description="Column with the score.")
    metric: str | None = Field(None, description="Name of the metric; the column's if left out.")
    task: str | None = Field(None, description="What was scored, where that is not what the run was trained for.")
    split: Literal["validation", "test"] = Field("test", description="On which split.")
    higher_is_better: bool = Field(description="False for losses, perplexities and error rates.")
    low: float | None = Field(None, description="Lowest possible value.")
    high: float | None = Field(None, description="Highest possible value.")
    items: int = Field(0, ge=0, description="How many items were scored; 0 where that is not known.")
    stderr: str | None = Field(None, description="Column with the standard error over items.")
    base: From | None = Field(
        None, description="The base model's own score, before it was tuned; 0 for a score that is a change."
    )
    chance: float | None = Field(None, description="Score of guessing.")
    valid: dict[str, tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Column to values: where a row has others, its score does not count."
    )


class ModelFacts(Strict):
    """What is known of a base model."""

    parameters: From | None = None
    layers: From | None = None
    width: From | None = None
    vocab: From | None = None
    type: From | None = Field(None, description="Architecture, as its config names it: llama, qwen2.")


class TaskFacts(Strict):
    """What is known of a task."""

    rows: From | None = Field(None, description="Training rows.")
    prompt_chars: From | None = None
    completion_chars: From | None = None
    choices: From | None = None
    output_type: From | None = Field(None, description="lm-eval's word: multiple_choice, generate_until.")
    domain: From | None = None


class Costs(Strict):
    """What a run cost."""

    train_s: From | None = Field(None, description="Training seconds; in a table of curves, up to the row.")
    total_s: From | None = Field(None, description="Seconds of the whole run.")
    gpu_s: From | None = None
    peak_memory_bytes: From | None = None
    tokens: From | None = None
    flops: From | None = None
    energy_j: From | None = None
    money: From | None = None
    trainable_params: From | None = None
    total_params: From | None = None
    artifact_bytes: From | None = None


class Mapping(Strict):
    """A mapping file, checked."""

    source: str = Field(description="Who ran the runs, and under which licence they may be used.")
    where: dict[str, tuple[Scalar, ...]] = Field(
        default_factory=dict, description="Column to values: only rows with these are taken."
    )
    task: From
    base_model: From
    method: From = Field(description="Which parameters moved; none marks runs of the base model itself.")
    objective: From = Cell(value="sft")
    retention: From = Cell(value="none")
    curation: From = Cell(value="as_is")
    params: dict[str, From] = Field(
        default_factory=dict,
        description="Parameter name to its column; a column of JSON objects gives a parameter for each key.",
    )
    steps: From | None = Field(None, description="Optimiser steps of the full training.")
    at: From | None = Field(
        None,
        description="How far a run had come at a row, in any unit: rows that differ in nothing else are the learning curve of "
        "one run.",
    )
    seed: From | None = None
    scores: tuple[ScoreColumn, ...] = Field(min_length=1, description="The first is what runs are judged by.")
    status: From | None = Field(None, description=f"How a run ended, mapped to {', '.join(TrialStatus)}.")
    costs: Costs = Costs()
    model_facts: ModelFacts = ModelFacts()
    task_facts: TaskFacts = TaskFacts()
    hardware: From | None = None
    started_at: From | None = None
    sure: tuple[str, ...] = Field((), description="Columns whose values look wrong, and are right.")

    @model_validator(mode="after")
    def _judged_by_its_own_task(self) -> Mapping:
        if self.scores[0].task is not None:
            raise ValueError(
                "the first score is what runs are judged by and has no `task`: put it first, or drop `task`"
            )
        return self


def load_mapping(path: Path | None, known: AnyMapping[str, Any]) -> Mapping:
    """Read and check a mapping file.

    Args:
        path: The file; None where what is known by itself is enough.
        known: What the kind of source says of its own columns; the file adds to it and goes before it.

    Raises:
        SpecError: With one sentence per broken rule.
    """
    where = str(path) if path else "--mapping"
    try:
        return Mapping.model_validate(dict(known) | (read_yaml(path) if path else {}))
    except ValidationError as error:
        raise SpecError(f"{where}: " + sentences(error, Mapping)) from error
