"""Scores finished models as trials are scored: the same tasks, items and metrics, each in its own chat template."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.compare.answers import Answer, Model, Skill, told_apart
from harness.errors import SpecError
from harness.records.scale import Scale

if TYPE_CHECKING:
    from harness.evaluation.evaluate import Evaluated, Evaluator
    from harness.tasks.task import Task
    from harness.trial.finished import Finished

log = logging.getLogger(__name__)
SPLIT = "test"


@dataclass(frozen=True, kw_only=True)
class Exam:
    """What models are asked, and how."""

    tasks: Sequence[Task]
    limit: int | None = None
    """Only this many items of each task, the first in the order of their hashes; None for all."""
    plain: bool = False
    """Whether prompts are plain text for all models, whatever chat template they have."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""


def examine(names: Sequence[str], exam: Exam) -> list[Model]:
    """Score models one after the other; each is freed before the next one is loaded.

    Args:
        names: Embedded models, folders, or hub ids.
        exam: What they are asked.

    Raises:
        SpecError: When there is no such model, a task does not fit it, or its scores are not finite.
    """
    from harness.evaluation.evaluate import Evaluator
    from harness.models.tokens import TokenCache
    from harness.trial.finished import check_finished, open_finished
    from harness.trial.process import pick_device, release_memory

    device = pick_device(exam.device)
    for name in names:  # before minutes are spent on the first one
        check_finished(name)
    evaluator = Evaluator(TokenCache())
    models = []
    for name in names:
        log.info("scoring %s on %d tasks (%s)", name, len(exam.tasks), device)
        models.append(_examined(name, open_finished(name, device), evaluator, exam))
        release_memory()
    return models


def _examined(name: str, finished: Finished, evaluator: Evaluator, exam: Exam) -> Model:
    skills = {}
    for task in exam.tasks:
        for leaf in dict.fromkeys(task.leaves):
            skills[leaf.name] = _skill(name, finished, evaluator, leaf, exam)
    return Model(name=name, skills=skills)


def _skill(name: str, finished: Finished, evaluator: Evaluator, task: Task, exam: Exam) -> Skill:
    import torch

    from harness.evaluation.asked import asked
    from harness.evaluation.evaluate import Evaluated
    from harness.evaluation.loglikelihood import StackedModels
    from harness.nn.determinism import random_state_kept, resolve_precision
    from harness.tasks.chat_rows import template_for

    device = finished.model.device.type
    in_bfloat16 = resolve_precision("auto", device) == "bfloat16"  # as trials are scored
    template = template_for(task, None if exam.plain else finished.template, name)
    models = StackedModels(finished.model, 1, finished.held)
    with random_state_kept(), torch.autocast(device, torch.bfloat16, enabled=in_bfloat16):
        (outcome,) = evaluator.evaluate(models, finished.tokenizer, task, SPLIT, exam.limit, template=template)
    if not isinstance(outcome, Evaluated):
        raise SpecError(
            f"a model must give finite scores, but those of {name} on {task.name} are not: its weights are broken"
        )
    score = outcome.score
    items = asked(task, SPLIT, exam.limit, template)
    return Skill(
        metric=score.metric,
        higher_is_better=score.higher_is_better,
        scale=score.scale or Scale(),
        chance=score.chance,
        value=score.value,
        answers=tuple(
            Answer(
                item=item,
                value=own.value,
                prompt=question.prompt,
                right=question.right,
                given=own.prediction,
                bits=own.answer_bits,
                choices=question.choices,
            )
            for item, own, question in zip(_names(outcome), outcome.items, items, strict=True)
        ),
    )


def _names(outcome: Evaluated) -> Iterator[str]:
    return told_apart(item.doc_hash for item in outcome.items)
