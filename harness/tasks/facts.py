"""What can be known of a task before anything is trained on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from harness.tasks.task import Task


def task_features(task: Task) -> dict[str, float | str]:
    """What is knowable of a task, from its YAML and training rows; lengths and counts as decadic logarithms."""
    from harness.tasks.training_rows import training_rows

    rows = training_rows(task)
    shown = rows[:: max(1, len(rows) // 200)]
    choices = task.config.get("doc_to_choice")
    return {
        "output_type": task.output_type,
        "metric": task.metric,
        "higher_is_better": float(task.higher_is_better),
        "chance": task.chance or 0.0,
        "log_rows": math.log10(max(1, len(rows))),
        "log_prompt_chars": _log_mean([len(row["prompt"]) for row in shown]),
        "log_completion_chars": _log_mean([len(row["completion"]) for row in shown]),
        "choices": float(len(choices)) if isinstance(choices, list) else 0.0,
        "domain": str(task.metadata.get("domain", "")),
    }


def _log_mean(lengths: Sequence[int]) -> float:
    return math.log10(max(1.0, float(np.mean(lengths)))) if lengths else 0.0
