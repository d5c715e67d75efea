"""A study file: the question, and everything that answers it; YAML in, frozen types out, unknown keys refused.

`load_study` reads a file; `Family` is a pipeline with its search space, which is what gets an equal tuning budget.
Where a study runs (this machine, Slurm) is not in it: that lives in the profile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import one_line, one_of
from harness.records.codec import fingerprint
from harness.study.accept import read_limits

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Count = Annotated[int, Field(ge=1, le=10**9)]
"""How many there are of something that a machine works through: a longer number is a slip of the hand."""
Few = Annotated[int, Field(ge=1, le=10**5)]
"""How many there are of something of which each takes minutes."""


class Strict(BaseModel):
    """Refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StageSpec(Strict):
    """One stage of a family: a choice on each axis, and what the study says of their parameters."""

    method: str = Field(description="Which parameters move: a file of harness/methods/.")
    objective: str = Field("sft", description="What is minimised: a file of harness/objectives/.")
    retention: str = Field("none", description="How old knowledge is kept: a file of harness/retention/.")
    curation: str = Field("as_is", description="What happens to the training rows: a file of harness/curation/.")
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="Parameter name to a value (fixed), {low, high, log} or {choices: [...]} (searched).",
    )
    data: str | None = Field(None, description="Another task whose training rows this stage uses.")
    share: float | None = Field(None, gt=0, le=1, description="Share of the training steps; equal shares if left out.")


class FamilySpec(Strict):
    """A pipeline family: either the keys of one stage, or `stages`."""

    stages: tuple[StageSpec, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _one_stage_is_short(cls, data: Any) -> Any:
        return data if isinstance(data, Mapping) and "stages" in data else {"stages": [data]}


class ModelSpec(Strict):
    """A base model: an embedded one (`tiny-1m`), a folder (may hold ${VARIABLE}), or a Hugging Face id."""

    name: str
    revision: str | None = Field(None, description="Commit or tag of a Hugging Face model; pinned when planned.")
    corpus: str | None = Field(
        None, description="JSONL with `text` rows of what the model knows, for replay; a task name works too."
    )
    chat_template: bool | None = Field(
        None,
        exclude_if=lambda value: value is None,  # studies from before this setting keep their fingerprint
        description="Whether it is tuned and scored in its tokenizer's chat template; left out, it is where there is one.",
    )


class Budget(Strict):
    """What every family gets, per task and base model: one of trials and gpu_seconds; one of steps, epochs, examples.

    Beside that, `gpu_hours` and `money` are what the whole study may take: where it stops, and never what it runs.
    """

    trials: Few | None = Field(None, description="Tuning trials per family, task and base model.")
    gpu_seconds: float | None = Field(
        None,
        gt=0,
        le=10**9,
        description="Accelerator seconds (wall seconds without one), loading left out, per family, task and base model.",
    )
    steps: Count | None = Field(None, description="Optimiser steps of a full-fidelity trial.")
    epochs: float | None = Field(
        None, gt=0, le=10**5, description="Passes over the training rows of a full-fidelity trial."
    )
    examples: Count | None = Field(None, description="Training examples of a full-fidelity trial.")
    gpu_hours: float | None = Field(
        None,
        gt=0,
        le=10**9,
        exclude_if=lambda value: value is None,
        description="Most hours of GPUs (wall hours without one) that the whole study may take, failed and interrupted work "
        "included: then nothing new starts.",
    )
    money: float | None = Field(
        None,
        gt=0,
        le=10**12,
        exclude_if=lambda value: value is None,
        description="Most money that the whole study may cost by its `prices`, failed and interrupted work included: then "
        "nothing new starts.",
    )

    @model_validator(mode="after")
    def _exactly_one_of_each(self) -> Budget:
        if (self.trials is None) == (self.gpu_seconds is None):
            raise ValueError("budget must name exactly one of trials and gpu_seconds: remove or add one")
        if sum(value is not None for value in (self.steps, self.epochs, self.examples)) != 1:
            raise ValueError("budget must name exactly one of steps, epochs and examples: keep one")
        return self

    @property
    def in_seconds(self) -> bool:
        """Whether it is one of seconds, not of trials."""
        return self.gpu_seconds is not None

    @property
    def amount(self) -> float:
        """Trials, or seconds where it is `in_seconds`."""
        return float(self.trials if self.trials is not None else self.gpu_seconds or 0.0)


class Search(Strict):
    """How trials are proposed and which go on."""

    sampler: str = Field("tpe", description="A file of harness/search/samplers/.")
    scheduler: str = Field("none", description="A file of harness/search/schedulers/.")
    min_fidelity: float = Field(
        1 / 9, gt=0, le=1, description="Lowest rung of a scheduler, as share of the full budget."
    )
    reduction: int = Field(
        3, ge=2, le=1000, description="Of this many trials of a rung, one goes on; the rungs' ratio too."
    )
    give_up: float | None = Field(
        None,
        gt=0,
        lt=1,
        exclude_if=lambda value: value is None,  # studies from before this setting keep their fingerprint
        description="A family stops on a task when the chance that the rest of its budget reaches the best family there, "
        "by validation scores, is at most this, for example 0.05; left out, every family uses its whole budget.",
    )
    limit: Count | None = Field(None, description="Validation items per task while searching; all if left out.")
    off_target: bool = Field(True, description="Whether search trials are scored on the off-target suite too.")
    fractions: tuple[float, ...] = Field(
        (0.25, 0.5, 1.0), description="Fractions of the budget at which the curve is scored."
    )

    @field_validator("fractions")
    @classmethod
    def _rising_to_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(set(value)) or value[0] <= 0 or value[-1] != 1.0:
            raise ValueError(
                f"fractions must rise within (0, 1] and end at 1, but got {list(value)}: for example [0.25, 0.5, 1]"
            )
        return value


class Confirm(Strict):
    """The finalists' fresh runs, scored once on the test split."""

    finalists: Few = Field(3, description="Families per task and base model, best validation score first.")
    seeds: int = Field(5, ge=2, le=10**5, description="Fresh seeds per finalist (initialisation and data order).")
    limit: Count | None = Field(None, description="Test items per task; all if left out.")


class Prices(Strict):
    """Money per hour, for the cost columns; nothing is assumed where nothing is given."""

    currency: str = "USD"
    cpu_hour: float | None = Field(None, ge=0, description="One CPU core for one hour.")
    gpu_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Price of one hour by GPU name as torch.cuda.get_device_name prints it; `default` for all others.",
    )


class Accept(Strict):
    """What the answer may cost; it changes what is advised, never what is run."""

    forgetting: str | None = Field(None, description="Largest loss of any off-target skill, for example `5 points`.")
    hours: float | None = Field(None, description="Longest training of one run alone, in hours.")
    memory: str | None = Field(None, description="Largest peak memory of one run, for example `16 GB`.")

    @model_validator(mode="before")
    @classmethod
    def _can_be_read(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            read_limits(data)
        return data


def _listed(value: Any) -> Any:
    return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


class StudySpec(Strict):
    """A study file, checked."""

    name: str = Field(description="Name of the study's outputs; letters, digits, dot, dash, underscore.")
    question: str = Field(description="What the study asks, in one sentence.")
    base_models: Annotated[tuple[ModelSpec, ...], BeforeValidator(_listed)] = Field(min_length=1)
    tasks: tuple[str, ...] = Field(
        min_length=1, description="Names of files in studies/tasks/, embedded tasks, or lm-eval tasks."
    )
    off_target: tuple[str, ...] = Field((), description="Tasks that are only evaluated, to see what was lost.")
    families: dict[str, FamilySpec] = Field(min_length=1)
    budget: Budget
    search: Search = Search()
    confirm: Confirm = Confirm()
    prices: Prices = Prices()
    accept: Accept | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="What the answer may forget and cost; the report then names the best within it, and what that costs.",
    )
    smallest_difference: float = Field(
        2.0,
        gt=0,
        le=100,
        exclude_if=lambda value: value == 2.0,
        description="Smallest difference that matters to you, in points: hundredths of the way from a metric's lowest to its "
        "highest value. What surely differs by less is called equivalent.",
    )
    seed: int = Field(0, ge=0, lt=2**32)

    @field_validator("name")
    @classmethod
    def _is_file_name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(
                f"name must be letters, digits, dot, dash and underscore, but got {value!r}: rename the study"
            )
        return value

    @model_validator(mode="after")
    def _each_once(self) -> StudySpec:
        models = [model.name for model in self.base_models]
        for what, listed in (("base_models", models), ("tasks", self.tasks), ("off_target", self.off_target)):
            if twice := sorted({name for name in listed if listed.count(name) > 1}):
                raise ValueError(
                    f"{what} must name each once, but names {', '.join(twice)} more often: remove the others"
                )
        return self

    @property
    def corpora(self) -> dict[str, str]:
        """Corpora that the study gives, by base model name."""
        return {model.name: model.corpus for model in self.base_models if model.corpus}

    @property
    def fingerprint(self) -> str:
        """Hash of what the study runs; another hash under the same name is another study."""
        # how far it may go does not make it another study, or nobody could raise that and go on
        return fingerprint(
            self.model_dump(
                mode="json", exclude={"accept": True, "smallest_difference": True, "budget": {"gpu_hours", "money"}}
            )
        )


def sentences(error: ValidationError, model: type[BaseModel]) -> str:
    """The first of pydantic's errors, a sentence each, and how many more there are.

    Args:
        error: What validation raised.
        model: What was validated.
    """
    first, more = error.errors()[:3], error.error_count() - 3
    return "; ".join([*(sentence(e, model) for e in first), *([f"and {more} more like these"] if more > 0 else [])])


def sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One sentence for one of pydantic's errors: the place, the rule, the value received.

    Args:
        error: From `ValidationError.errors`.
        model: What was validated.
    """
    kind, location = error["type"], error["loc"]
    place = ".".join(map(str, location)) or "the file"
    if kind == "extra_forbidden":
        return one_of(f"{place}: key", str(location[-1]), _keys(model, location[:-1]))
    if kind == "missing":
        return f"{place} is required: add it"
    received = (
        "" if kind == "value_error" else f", but got {repr(error['input'])[:80]}"
    )  # our own errors name the value
    return one_line(f"{place}: {error['msg'].removeprefix('Value error, ')}{received}", 300)


def _keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The valid keys at a place of the model, followed as far as its annotations are plain."""
    current = model
    for part in loc:
        field = current.model_fields.get(str(part))  # none for the name of a family or the number of a stage
        nested = next(_models_in(field.annotation), None) if field else None
        current = nested or current
    return sorted(current.model_fields)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a field's annotation names, for example `FamilySpec` in `dict[str, FamilySpec]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
