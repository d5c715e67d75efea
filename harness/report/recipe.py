"""A pipeline in words and as YAML, from its recorded stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.plugins import AXIS_FOLDER
from harness.records.trial import Stage
from harness.report import words
from harness.space import Scalar

if TYPE_CHECKING:
    from harness.report.findings import Contender

_PLAIN = {"retention": "none", "curation": "as_is"}
"""Choices that change nothing need no mention."""


def in_words(stages: Sequence[Stage]) -> str:
    """`Tune with method lora, objective sft, retention replay, then with ...`."""
    return "Tune with " + ", then with ".join(
        ", ".join(f"{axis} {choice}" for axis, choice in _choices(stage).items()) for stage in stages
    )


def settings(stages: Sequence[Stage]) -> str:
    """The learning rate of every stage, and what the methods themselves set."""
    from harness.study.family import OPTIMIZER_SPACE

    texts = []
    for index, stage in enumerate(stages):
        prefix = f"stage {index + 1} " if len(stages) > 1 else ""
        texts += [
            f"{prefix}{name.replace('_', ' ')} {_value(value)}"
            for name, value in stage.params.items()
            # of the optimiser's settings only the learning rate is worth a reader's time, and an empty text says nothing
            if name == "learning_rate" or (name not in OPTIMIZER_SPACE and value != "")
        ]
    return ", ".join(texts) or "default settings"


def to_yaml(contender: Contender, base_model: str) -> str:
    """The pipeline with every setting, in the words of a study file.

    Args:
        contender: The confirmed pipeline.
        base_model: Its base model's name.
    """
    import yaml

    stages = [_stage(stage, alone=len(contender.stages) == 1) for stage in contender.stages]
    family = stages[0] if len(stages) == 1 else {"stages": stages}
    content = {"base_models": [base_model], "families": {contender.family: family}}
    # Keys keep their order: a reader expects the method first.
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _choices(stage: Stage) -> dict[str, str]:
    """What a stage chooses on each axis where that changes anything."""
    choices = {axis: str(getattr(stage, axis)) for axis in AXIS_FOLDER}
    return {axis: choice for axis, choice in choices.items() if choice != _PLAIN.get(axis)}


def _stage(stage: Stage, alone: bool) -> dict[str, object]:
    """A stage in the words of a study file; its share is said where it is not the only one."""
    data = {"data": stage.data} if stage.data else {}
    share = {} if alone else {"share": stage.share}
    return {**_choices(stage), "params": dict(stage.params), **data, **share}


def _value(value: Scalar) -> str:
    if isinstance(value, bool | str):
        return str(value)
    return words.number(value) or str(value)
