"""When there is too little evidence to recommend anything, and what to run to have it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from harness.plugins import load_all
from harness.recommend.features import Facts, Observation
from harness.study.spec import StudySpec

MIN_TASKS = 2
MIN_TRIALS = 4
"""Pipelines with a full-length score per task, on this base model or one like it; seeds and rungs count once."""
ALIKE = math.log10(4)
"""Base models whose parameter counts differ by no more than this (decadic logarithm) teach about each other."""
FAR = 1.0
"""A number further than this beyond all seen (decadic logarithms: ten times) is out of reach."""


@dataclass(frozen=True, kw_only=True)
class NotEnoughEvidence:
    """Why nothing can be recommended, and what to run."""

    reason: str
    trials: int
    """Pipelines with a full-length score that there are."""
    needed: int
    """At least."""
    study: str
    """YAML of a study that would gather it."""
    command: str

    def text(self) -> str:
        """For a terminal."""
        count = f" ({self.trials} usable pipelines, at least {self.needed} needed)" if self.trials < self.needed else ""
        remedy = (
            f"Save this as a study and run: {self.command}\n\n{self.study}" if self.study else f"Run: {self.command}"
        )
        return f"Not enough evidence: {self.reason}{count}.\n{remedy}"


def lacking(
    seen: Sequence[Observation],
    task: str,
    task_facts: Facts,
    base_model: str,
    model_facts: Facts,
    studies: Sequence[StudySpec],
) -> NotEnoughEvidence | None:
    """What is missing before anything can be said of a task on a base model; None where nothing is.

    Args:
        seen: All observations.
        task: Name of the task that advice is asked for.
        task_facts: Its facts, as `tasks.facts.task_features` gives them.
        base_model: Name of the base model.
        model_facts: Its facts, as `models.facts.model_features` gives them.
        studies: Studies on record; the last one lends its families to the study that is proposed.
    """
    near = [o for o in seen if o.base_model == base_model or _alike(o.candidate.model, model_facts)]
    # A rung's score is that of a shorter training: it says little of what a full run gains.
    near = [o for o in near if o.candidate.fidelity == 1]
    per_task = Counter(task for task, _ in {(o.task, o.pipeline) for o in near})
    usable = {name for name, count in per_task.items() if count >= MIN_TRIALS}
    if len(usable) < MIN_TASKS:
        reason = (
            f"on {base_model} or a model like it, {len(usable)} tasks have {MIN_TRIALS} pipelines with a full-length score and a base score, "
            f"but a recommendation takes {MIN_TASKS}"
        )
    else:
        reason = _far([o.candidate.task for o in near if o.task in usable], task, task_facts)
    if not reason:
        return None
    name = f"evidence_{task}"
    study = _study(name, task, base_model, sorted(usable), studies)
    return NotEnoughEvidence(
        reason=reason,
        trials=per_task.total(),
        needed=MIN_TASKS * MIN_TRIALS,
        study=study,
        command=f"harness plan studies/{name}.yaml",
    )


def _alike(model: Facts, other: Facts) -> bool:
    sizes = [float(facts.get("log_parameters", math.nan)) for facts in (model, other)]
    return abs(sizes[0] - sizes[1]) <= ALIKE and model.get("type") == other.get("type")


def _far(tasks: Sequence[Facts], task: str, facts: Facts) -> str:
    """How a task lies outside the range of the other tasks, or an empty string.

    A fact that no other task has on record excludes nothing: older versions stored fewer facts.
    """
    kinds = {facts["output_type"] for facts in tasks if "output_type" in facts}
    if kinds and facts.get("output_type") not in kinds:
        return f"{task} is {facts.get('output_type')}, and all tasks known are {', '.join(map(str, sorted(kinds)))}"
    for name in sorted(facts):
        seen = [float(other[name]) for other in tasks if name in other and name.startswith("log_")]
        value = facts[name]
        if seen and isinstance(value, int | float) and not min(seen) - FAR <= value <= max(seen) + FAR:
            return (
                f"{task} has {name.removeprefix('log_').replace('_', ' ')} of {10**value:.3g}, "
                f"and all tasks known lie between {10 ** min(seen):.3g} and {10 ** max(seen):.3g}"
            )
    return ""


def _study(name: str, task: str, base_model: str, measured: Sequence[str], studies: Sequence[StudySpec]) -> str:
    """A study on the task, with the families, budget and off-target suite of a known study."""
    like = studies[-1].model_dump(mode="json", exclude_defaults=True) if studies else {}
    families = like.get("families") or {
        name: {"method": name} for name, method in load_all("methods").items() if method.needs_training
    }
    # The backtest leaves tasks out, so a study of the asked task alone would not do where no other is usable.
    study = {
        "name": name,
        "question": f"Which way of fine-tuning suits {task}?",
        "base_models": [base_model],
        "tasks": [task] if len(measured) >= MIN_TASKS - 1 else [task, "ANOTHER_TASK"],
        **({"off_target": like["off_target"]} if like.get("off_target") else {}),
        "families": families,
        "budget": like.get("budget") or {"trials": MIN_TRIALS, "steps": 100},
    }
    return yaml.safe_dump(study, sort_keys=False)
