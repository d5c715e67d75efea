"""Between which values a task's metric lies: as whoever computes it has declared, never as its name sounds."""

from __future__ import annotations

from pathlib import Path

from harness.errors import SpecError, one_of
from harness.metrics.base import LM_EVAL_SCALES, LM_EVAL_TASK_SCALES, measure_of
from harness.records.scale import Scale
from harness.tasks.definition import Definition, metric_name
from harness.tasks.file import lm_eval_folder
from harness.tasks.metadata import TaskMetadata

_KEEPS_SCALE = ("mean", "nanmean", "median")
"""Aggregations of a metric that is a mean of its items which stay between the lowest and the highest item."""


def declared_scale(definition: Definition, metadata: TaskMetadata, where: str) -> Scale:
    """The scale of a task's metric; both ends unknown where nobody has declared it.

    Args:
        definition: lm-eval's configuration of the task, with its one metric.
        metadata: The task file's.
        where: The task, for error messages.

    Raises:
        SpecError: When the file declares bounds for a metric whose own are known and others.
    """
    (entry,) = definition.metric_list
    name = metric_name(entry)
    own = _computed_scale(definition)
    declared = metadata.metrics.get(name)
    if declared is None or declared.bounds is None:
        return own or Scale()
    given = Scale(low=declared.bounds[0], high=declared.bounds[1])
    if own is not None and own != given:
        raise SpecError(
            f"{where}: metadata.metrics.{name}.bounds must be [{_end(own.low)}, {_end(own.high)}], between which {name} lies, "
            f"but are {declared.bounds}: remove them"
        )
    return given


def _computed_scale(definition: Definition) -> Scale | None:
    """The scale of what our code or lm-eval's own computes; None where the task's code does."""
    from lm_eval.api.metrics import mean
    from lm_eval.api.registry import aggregation_registry, metric_agg_registry

    (entry,) = definition.metric_list
    name = metric_name(entry)
    if ours := None if callable(definition.process_results) else measure_of(entry):
        return ours.scale
    usual = {known: metric_agg_registry.get(known) for known in LM_EVAL_SCALES}
    given = entry.get("aggregation")
    aggregation = usual.get(name) if given is None else aggregation_registry.get(given, None)
    if aggregation is not mean and aggregation in usual.values():
        # Such a function decides the scale by itself, whoever computes the items: lm-eval's f1 of any labels is a share.
        return next(LM_EVAL_SCALES[known] for known, own in usual.items() if own is aggregation)
    if (
        declared := LM_EVAL_TASK_SCALES.get(_folder_of(definition.process_results or entry["metric"]), {}).get(name)
    ) and (given in (None, *_KEEPS_SCALE) or _folder_of(given)):
        return declared
    is_own = not callable(entry.get("metric")) and not callable(definition.process_results)
    return LM_EVAL_SCALES.get(name) if is_own and usual.get(name) is mean and given in (None, *_KEEPS_SCALE) else None


def _folder_of(function: object) -> str:
    """The folder of lm-eval's tasks whose code a function is; empty for any other."""
    code, root = getattr(function, "__code__", None), lm_eval_folder() / "tasks"
    place = Path(code.co_filename).resolve().parent if code else Path()
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else ""


def _end(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"


def check_declared(definition: Definition, metadata: TaskMetadata, where: str) -> None:
    """Refuse declarations of metrics that the file does not have.

    Args:
        definition: The task file's keys.
        metadata: Its metadata.
        where: The task, for error messages.

    Raises:
        SpecError: For an unknown name; a typo would leave the metric undeclared.
    """
    known = [metric_name(entry) for entry in definition.metric_list]
    for name in metadata.metrics:
        if name not in known:
            raise SpecError(f"{where}: " + one_of("metric in metadata.metrics", name, known))
