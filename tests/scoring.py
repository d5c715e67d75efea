"""Scores for tests, each from an evaluator that has seen nothing before."""

from __future__ import annotations

from typing import Any

from harness.evaluation.evaluate import Evaluated, Evaluator, ScoreOutcome, comparability
from harness.evaluation.loglikelihood import StackedModels
from harness.models.tokens import TokenCache
from harness.tasks.task import Task


def evaluate(
    model: Any, tokenizer: Any, task: Task, split: str, limit: int | None, batch_size: int | None = None
) -> Evaluated:
    """The score of one model, which must be finite."""
    (outcome,) = Evaluator(TokenCache(), batch_size).evaluate(StackedModels(model), tokenizer, task, split, limit)
    assert isinstance(outcome, Evaluated), outcome
    return outcome


def evaluate_together(
    model: Any, count: int, tokenizer: Any, task: Task, split: str, limit: int | None
) -> list[ScoreOutcome]:
    """The scores of models that compute side by side."""
    return Evaluator(TokenCache()).evaluate(StackedModels(model, count), tokenizer, task, split, limit)


def comparable(task: Task, tokenizer: Any) -> str:
    """The comparability key of this tokenizer's scores on a task."""
    return comparability(task, tokenizer, TokenCache().facts(tokenizer))
