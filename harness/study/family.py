"""A pipeline family: a pipeline with its search space, which is what gets an equal tuning budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.errors import SpecError, one_of
from harness.plugins import AXIS_FOLDER, load, names
from harness.records.trial import ModelRef, Pipeline, Stage
from harness.space import (
    Choice,
    Distribution,
    Float,
    Integer,
    Params,
    Scalar,
    Space,
    defaults,
    override,
    scaled,
    searched,
)
from harness.study.spec import Budget, FamilySpec, StageSpec, StudySpec

OPTIMIZER_SPACE: Space = {
    "learning_rate": Float(1e-6, 1e-1, default=1e-4, log=True),
    "batch_size": Integer(1, 4096, default=16, log=True, searched=False),
    "gradient_accumulation": Integer(1, 1024, default=1, log=True, searched=False),
    "weight_decay": Float(0.0, 0.3, default=0.0, searched=False),
    "warmup_share": Float(0.0, 0.5, default=0.06, searched=False),
    "schedule": Choice(("cosine", "linear", "constant"), default="cosine", searched=False),
    "max_grad_norm": Float(0.0, 100.0, default=1.0, searched=False),
    "max_length": Integer(8, 1_048_576, default=1024, log=True, searched=False),
    "precision": Choice(("auto", "float32", "bfloat16"), default="auto", searched=False),
}
"""What every stage has, whatever its choices; a method narrows `learning_rate` to what its paper supports.

`batch_size` counts rows of one optimiser step divided by `gradient_accumulation`; `max_length` is cut to the model's
context; `precision` auto is bfloat16 on a GPU that has it and float32 elsewhere."""


@dataclass(frozen=True)
class FamilyStage:
    """One stage of a family with its resolved space."""

    spec: StageSpec
    space: Mapping[str, Distribution]
    share: float
    data_fingerprint: str = ""
    """Of the task that `spec.data` names, once `driver.resolve` has found it."""


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
        """The concrete pipeline for one point of the space.

        Args:
            base_model: What is tuned.
            values: The point; parameters left out take their defaults.
        """
        stages = self.stages_at(values)
        if base_model.chat_template:
            stages = tuple(replace(one, in_turns=_reads_turns(one)) for one in stages)
        return Pipeline(base_model, stages)

    def stages_at(self, values: Mapping[str, Scalar]) -> tuple[Stage, ...]:
        """The stages for one point of the space; parameters left out take their defaults."""
        stages = []
        for index, stage in enumerate(self.stages):
            params = defaults(stage.space) | {
                name: values[self._name(index, name)] for name in stage.space if self._name(index, name) in values
            }
            stages.append(
                Stage(
                    method=stage.spec.method,
                    objective=stage.spec.objective,
                    retention=stage.spec.retention,
                    curation=stage.spec.curation,
                    params=dict(sorted(params.items())),  # for people: the key sorts them anyway
                    data=stage.spec.data,
                    share=stage.share,
                    data_fingerprint=stage.data_fingerprint,
                    rewarded_as_scored=load("objectives", stage.spec.objective).samples,
                )
            )
        return tuple(stages)

    def _name(self, index: int, parameter: str) -> str:
        return parameter if len(self.stages) == 1 else f"{index}.{parameter}"


def _reads_turns(stage: Stage) -> bool:
    """Whether a stage was once trained otherwise on chats: around rendered prompts, or on earlier answers in pairs."""
    return load("curation", stage.curation).writes or "rejected" in load("objectives", stage.objective).needs


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

    Args:
        name: In the study.
        spec: As the study file has it.

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


def resolved_families(study: StudySpec) -> dict[str, Family]:
    """A study's families with their search spaces.

    Raises:
        SpecError: For an unknown choice or parameter, or a range outside the declared one.
    """
    return {name: resolve_family(name, spec) for name, spec in study.families.items()}


def full_steps(budget: Budget, family: Family, rows: int, params: Mapping[str, Scalar]) -> int:
    """Optimiser steps of a full-fidelity trial: what the budget says, or its examples over the rows of one step.

    With several stages, the rows of one step are the mean over stages, weighted by their shares.

    Args:
        budget: The study's.
        family: Of the trial.
        rows: Training rows of the trial's task.
        params: The trial's point in the family's space.

    Raises:
        SpecError: When the budget is in epochs, and a stage does not train on the task's rows one by one.
    """
    if budget.steps is not None:
        return budget.steps
    stages = family.stages_at(params)
    if budget.epochs is not None and (stage := next(filter(_counts_otherwise, stages), None)):
        raise SpecError(
            f"budget.epochs counts the task's rows, but family {family.name} trains on others ({stage.objective}"
            f"{f' on {stage.data}' if stage.data else ''}): give budget.steps or budget.examples"
        )
    rows_per_step = sum(
        stage.share * params.integer("batch_size") * params.integer("gradient_accumulation")
        for stage, params in ((stage, Params(stage.params)) for stage in stages)
    )
    examples = budget.examples if budget.examples is not None else (budget.epochs or 0.0) * rows
    return max(1, math.ceil(examples / rows_per_step))


def _counts_otherwise(stage: Stage) -> bool:
    """Whether a pass over the task's rows is no pass of this stage: it packs rows, or trains on another task's."""
    return stage.data is not None or load("objectives", stage.objective).packs
