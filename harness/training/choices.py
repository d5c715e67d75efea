"""The plug-ins that a stage names, and whether they can work together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.curation.base import Curation
from harness.methods.base import Method
from harness.objectives.base import Objective
from harness.plugins import AXIS_FOLDER, load, overrides
from harness.records.trial import Pipeline, Stage
from harness.retention.base import Retention
from harness.space import Params, check, defaults
from harness.study.family import stage_space

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Choices:
    """A stage's plug-ins and its complete parameters."""

    method: Method
    objective: Objective
    retention: Retention
    curation: Curation
    params: Params


def choices(stage: Stage) -> Choices:
    """Load a stage's plug-ins and fill in its defaults.

    Raises:
        SpecError: For an unknown name or a parameter outside its range.
    """
    names = {axis: getattr(stage, axis) for axis in AXIS_FOLDER}
    plugins = {axis: load(AXIS_FOLDER[axis], name)() for axis, name in names.items()}
    space = stage_space(names)
    check(space, stage.params, f"stage with {stage.method}")
    return Choices(**plugins, params=Params({**defaults(space), **stage.params}))


def refusal(pipeline: Pipeline, situation: Situation) -> str | None:
    """The reason why a pipeline cannot work in a situation, or None.

    Args:
        pipeline: Whose choices are asked, each beside the other choices of its stage.
        situation: What is known of device, base and task before anything is spent.
    """
    stages = [choices(stage) for stage in pipeline.stages]
    left: tuple[str, ...] = ()
    for stage, chosen in zip(pipeline.stages, stages, strict=True):
        there = replace(situation.of(stage), left=left)
        left += () if chosen.objective.leaves_policy else (stage.objective,)
        for plugin in (chosen.method, chosen.objective, chosen.retention, chosen.curation):
            if (reason := plugin.skip(there)) is not None:
                return reason
    for stage, chosen in zip(pipeline.stages, stages, strict=True):
        if overrides(chosen.retention, "finish") and not chosen.method.mergeable:
            return f"retention {stage.retention} changes merged weights, but {stage.method} cannot be merged"
    if not stages[-1].objective.leaves_policy:
        return f"{pipeline.stages[-1].objective} trains no model that a task can score: another stage must follow it"
    for stage, chosen in zip(pipeline.stages[:-1], stages[:-1], strict=True):
        if not chosen.method.mergeable and chosen.objective.leaves_policy:
            return f"{stage.method} cannot be merged into the base, so no stage can follow it: put it last"
    return None
