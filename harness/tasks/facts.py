"""What can be known of a task before anything is trained on it: for plug-ins that refuse, and for recommendations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.tasks.metadata import TaskMetadata

if TYPE_CHECKING:
    from harness.tasks.task import Task


@dataclass(frozen=True)
class TaskFacts:
    """What plug-ins may ask about a task; a field at its default is not known, and nothing is refused because of it."""

    output_type: str = ""
    """lm-eval's word for how the task is scored, for example `multiple_choice`."""
    columns: tuple[str, ...] | None = None
    """Fields that every training row has: `prompt`, `completion`, perhaps `rejected` and `wrong`."""
    metadata: TaskMetadata | None = None


def task_facts(task: Task) -> TaskFacts:
    """The facts of a task, from its file alone."""
    columns = ["prompt", "completion"]
    if task.metadata.preference:
        columns.append("rejected")
    if task.output_type == "multiple_choice":
        columns.append("wrong")
    return TaskFacts(task.output_type, tuple(columns), task.metadata)


def task_features(task: Task) -> dict[str, float | str]:
    """What recommendations compare tasks by, from the file and the training rows; counts as decadic logarithms."""
    from harness.tasks.training_rows import training_rows

    rows = training_rows(task)
    # 200 rows tell the mean lengths well enough: they are compared by their logarithms.
    sample = rows[:: max(1, len(rows) // 200)]
    choices = task.definition.doc_to_choice
    return {
        "output_type": task.output_type,
        "metric": task.metric,
        "higher_is_better": float(task.higher_is_better),
        "chance": task.chance or 0.0,
        "log_rows": math.log10(max(1, len(rows))),
        "log_prompt_chars": _log_mean([len(row.prompt) for row in sample]),
        "log_completion_chars": _log_mean([len(row.completion) for row in sample]),
        "choices": float(len(choices)) if isinstance(choices, list) else 0.0,
        "domain": task.metadata.domain or "",
    }


def _log_mean(lengths: Sequence[int]) -> float:
    return math.log10(max(1.0, float(np.mean(lengths)))) if lengths else 0.0
