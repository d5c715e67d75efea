"""A study file: the question, and everything that answers it; YAML in, frozen types out, unknown keys refused.

`load_study` reads a file; `Family` is a pipeline with its search space, which is what gets an equal tuning budget.
Where a study runs (this machine, Slurm) is not in it: that lives in the profile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.errors import SpecError, one_of
from harness.plugins import AXIS_FOLDER, load, names
from harness.recipes import expanded
from harness.records import ModelRef, Pipeline, Stage, fingerprint
from harness.space import OPTIMIZER_SPACE, Distribution, Scalar, defaults, override, scaled, searched

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class Strict(BaseModel):
    """Refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class Budget(Strict):
    """What every family gets, per task and base model. One of trials and gpu_seconds; one of steps, epochs, examples."""

    trials: int | None = Field(None, ge=1, description="Tuning trials per family, task and base model.")
    gpu_seconds: float | None = Field(
        None,
        gt=0,
        description="Accelerator seconds (wall seconds without one), loading left out, per family, task and base model.",
    )
    steps: int | None = Field(None, ge=1, description="Optimiser steps of a full-fidelity trial.")
    epochs: float | None = Field(None, gt=0, description="Passes over the training rows of a full-fidelity trial.")
    examples: int | None = Field(None, ge=1, description="Training examples of a full-fidelity trial.")

    @model_validator(mode="after")
    def _exactly_one_of_each(self) -> Budget:
        if (self.trials is None) == (self.gpu_seconds is None):
            raise ValueError("budget must name exactly one of trials and gpu_seconds: remove or add one")
        if sum(value is not None for value in (self.steps, self.epochs, self.examples)) != 1:
            raise ValueError("budget must name exactly one of steps, epochs and examples: keep one")
        return self


class Search(Strict):
    """How trials are proposed and which go on."""

    sampler: str = Field("tpe", description="A file of harness/search/samplers/.")
    scheduler: str = Field("none", description="A file of harness/search/schedulers/.")
    min_fidelity: float = Field(
        1 / 9, gt=0, le=1, description="Lowest rung of a scheduler, as share of the full budget."
    )
    reduction: int = Field(3, ge=2, description="Of this many trials of a rung, one goes on; the rungs' ratio too.")
    give_up: float | None = Field(
        None,
        gt=0,
        lt=1,
        exclude_if=lambda value: value is None,  # studies from before this setting keep their fingerprint
        description="A family stops on a task when the chance that the rest of its budget reaches the best family there, "
        "by validation scores, is at most this, for example 0.05; left out, every family uses its whole budget.",
    )
    limit: int | None = Field(None, ge=1, description="Validation items per task while searching; all if left out.")
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

    finalists: int = Field(3, ge=1, description="Families per task and base model, best validation score first.")
    seeds: int = Field(5, ge=2, description="Fresh seeds per finalist (initialisation and data order).")
    limit: int | None = Field(None, ge=1, description="Test items per task; all if left out.")


class Prices(Strict):
    """Money per hour, for the cost columns; nothing is assumed where nothing is given."""

    currency: str = "USD"
    cpu_hour: float | None = Field(None, ge=0, description="One CPU core for one hour.")
    gpu_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="Price of one hour by GPU name as torch.cuda.get_device_name prints it; `default` for all others.",
    )


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
    seed: int = Field(0, ge=0)

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
    def fingerprint(self) -> str:
        """Hash of the whole study; another hash under the same name is another study."""
        return fingerprint(self.model_dump(mode="json"))

    def resolved_families(self) -> dict[str, Family]:
        """The families with their search spaces.

        Raises:
            SpecError: For an unknown choice or parameter, or a range outside the declared one.
        """
        return {name: resolve_family(name, spec) for name, spec in self.families.items()}


@dataclass(frozen=True)
class FamilyStage:
    """One stage of a family with its resolved space."""

    spec: StageSpec
    space: Mapping[str, Distribution]
    share: float
    data_fingerprint: str = ""
    """Of the task that `spec.data` names, once `setting.resolve` has found it."""


@dataclass(frozen=True)
class Family:
    """A pipeline with its search space."""

    name: str
    stages: tuple[FamilyStage, ...]

    @property
    def space(self) -> dict[str, Distribution]:
        """What a sweep varies: parameter names, prefixed with the stage's number if there are several stages."""
        return {
            self._name(index, name): distribution
            for index, stage in enumerate(self.stages)
            for name, distribution in searched(stage.space).items()
        }

    def pipeline(self, base_model: ModelRef, values: Mapping[str, Scalar]) -> Pipeline:
        """The concrete pipeline for one point of the space; parameters left out take their defaults."""
        stages = []
        for index, stage in enumerate(self.stages):
            params = defaults(stage.space) | {
                name: values[self._name(index, name)] for name in stage.space if self._name(index, name) in values
            }
            spec = stage.spec
            stages.append(
                Stage(
                    spec.method,
                    spec.objective,
                    spec.retention,
                    spec.curation,
                    dict(sorted(params.items())),
                    spec.data,
                    stage.share,
                    stage.data_fingerprint,
                )
            )
        return Pipeline(base_model, tuple(stages))

    def _name(self, index: int, parameter: str) -> str:
        return parameter if len(self.stages) == 1 else f"{index}.{parameter}"


def stage_space(choices: Mapping[str, str]) -> dict[str, Distribution]:
    """The space of a stage: the optimiser's settings and what each choice declares (the method's word counts last).

    Learning rates that a method declares are those of supervised fine-tuning; an objective may scale them.

    Args:
        choices: Axis (method, objective, retention, curation) to plug-in name.
    """
    space: dict[str, Distribution] = dict(OPTIMIZER_SPACE)
    for axis in ("objective", "curation", "retention", "method"):
        space |= load(AXIS_FOLDER[axis], choices[axis]).space
    scale = load("objectives", choices["objective"]).learning_rate_scale
    return space | {"learning_rate": scaled(space["learning_rate"], scale)}


def resolve_family(name: str, spec: FamilySpec) -> Family:
    """A family with its search space.

    Raises:
        SpecError: For an unknown choice or parameter, a range outside the declared one, or wrong shares.
    """
    shares = [stage.share for stage in spec.stages]
    if any(share is None for share in shares):
        if any(share is not None for share in shares):
            raise SpecError(f"family {name}: give every stage a share, or none: stages have {shares}")
        shares = [1 / len(shares)] * len(shares)
    if abs(sum(share or 0.0 for share in shares) - 1) > 1e-6:
        raise SpecError(f"family {name}: shares must sum to 1, but got {shares}: change them")
    stages = tuple(
        FamilyStage(stage, _stage_space(f"family {name}", stage), round(share or 0.0, 6))
        for stage, share in zip(spec.stages, shares, strict=True)
    )
    return Family(name, stages)


def _stage_space(where: str, stage: StageSpec) -> dict[str, Distribution]:
    choices = {axis: getattr(stage, axis) for axis in AXIS_FOLDER}
    for axis, choice in choices.items():
        if choice not in names(AXIS_FOLDER[axis]):
            raise SpecError(f"{where}: " + one_of(axis, choice, list(names(AXIS_FOLDER[axis]))))
    return override(stage_space(choices), stage.params, where)


def load_study(path: Path) -> StudySpec:
    """Read and check a study file.

    Raises:
        SpecError: With one sentence per broken rule.
    """
    data = read_yaml(path)
    families = data.get("families")
    for name, family in families.items() if isinstance(families, dict) else ():
        if isinstance(family, dict) and "recipe" in family:
            try:
                families[name] = expanded(family, path.parent)
            except SpecError as error:
                raise SpecError(f"{path}: family {name}: {error}") from error
    try:
        study = StudySpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: " + "; ".join(sentence(e, StudySpec) for e in error.errors())) from error
    for folder, name in (("search/samplers", study.search.sampler), ("search/schedulers", study.search.scheduler)):
        if name not in names(folder):
            raise SpecError(f"{path}: " + one_of(folder.split("/")[1].rstrip("s"), name, list(names(folder))))
    try:
        study.resolved_families()
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    return study


def read_yaml(path: Path) -> Any:
    """A YAML mapping from a file.

    Raises:
        SpecError: When it is missing, not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(f"{path} must be a readable file ({error.strerror}): check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} must be valid YAML, but is not: " + " ".join(str(error).split())) from error
    if not isinstance(data, dict):
        raise SpecError(
            f"{path} must hold a mapping of keys to values, but holds {type(data).__name__}: see the examples in studies/"
        )
    return data


def sentence(error: Any, model: type[BaseModel]) -> str:
    """One sentence for one pydantic error: the place, the rule, the value received."""
    place = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        return one_of(f"{place}: key", str(error["loc"][-1]), _keys(model, error["loc"][:-1]))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{place} is required: add it"
    shown = "" if error["type"] == "value_error" else f", but got {repr(error['input'])[:80]}"
    return f"{place}: {message}{shown}"


def _keys(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """The valid keys at a place of the model, followed as far as its annotations are plain."""
    current: type[BaseModel] = model
    for part in loc:
        field = current.model_fields.get(str(part))
        nested = (
            [arg for arg in _walk(field.annotation) if isinstance(arg, type) and issubclass(arg, BaseModel)]
            if field
            else []
        )
        current = nested[0] if nested else current
    return sorted(current.model_fields)


def _walk(annotation: Any) -> list[Any]:
    found = [annotation]
    for inner in getattr(annotation, "__args__", ()):
        found += _walk(inner)
    return found


def expand(text: str, where: str) -> str:
    """Replace `${VARIABLE}` by the environment's value.

    Raises:
        SpecError: When a variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise SpecError(
                f"{where}: the environment must set {match[1]}, but does not: export {match[1]}=... and run again"
            )
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, text)


def study_json_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    return StudySpec.model_json_schema()


Role = Literal["base", "search", "confirm"]
"""Why a study ran a trial."""
