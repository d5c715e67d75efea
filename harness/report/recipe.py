"""A pipeline in words and as YAML, from its recorded stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.report import words

if TYPE_CHECKING:
    from harness.report.findings import Contender

_AXES = ("method", "objective", "retention", "curation")
_PLAIN = {"retention": "none", "curation": "as_is"}
"""Choices that change nothing need no mention."""


def in_words(stages: Sequence[Mapping[str, Any]]) -> str:
    """`Tune with method lora, objective sft, retention replay, then with ...`."""
    return "Tune with " + ", then with ".join(
        ", ".join(f"{axis} {stage[axis]}" for axis in _AXES if stage[axis] != _PLAIN.get(axis)) for stage in stages
    )


def settings(stages: Sequence[Mapping[str, Any]]) -> str:
    """The learning rate of every stage, and what the methods themselves set."""
    from harness.study.family import OPTIMIZER_SPACE

    shown = []
    for index, stage in enumerate(stages):
        prefix = f"stage {index + 1} " if len(stages) > 1 else ""
        shown += [
            f"{prefix}{name.replace('_', ' ')} {_value(value)}"
            for name, value in stage["params"].items()
            if name == "learning_rate" or name not in OPTIMIZER_SPACE
        ]
    return ", ".join(shown) or "default settings"


def to_yaml(contender: Contender, base_model: str) -> str:
    """The pipeline with every setting, in the words of a study file."""
    import yaml

    stages = [_stage(stage, alone=len(contender.stages) == 1) for stage in contender.stages]
    family = stages[0] if len(stages) == 1 else {"stages": stages}
    content = {"base_models": [base_model], "families": {contender.family: family}}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _stage(stage: Mapping[str, Any], alone: bool) -> dict[str, Any]:
    chosen = {axis: stage[axis] for axis in _AXES if stage[axis] != _PLAIN.get(axis)}
    chosen["params"] = dict(stage["params"])
    if stage.get("data"):
        chosen["data"] = stage["data"]
    return chosen if alone else chosen | {"share": stage["share"]}


def _value(value: Any) -> str:
    return (
        words.number(value) or str(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else str(value)
    )
