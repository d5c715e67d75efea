"""Scores trials that are alike in one pass over each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from harness.evaluation.loglikelihood import StackedModels
from harness.nn.determinism import random_state_kept, resolve_precision
from harness.records.trial import Ended, PathPoint, Score
from harness.trial.failures import Split, finite
from harness.trial.run import shared
from harness.trial.stage_run import Opened, Tuned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.evaluation.evaluate import ScoreOutcome
    from harness.tasks.task import Task


def score(tuned: Sequence[Tuned]) -> Split | None:
    """Score the task, then the off-target suite, then the other weights that a trial's retention names.

    Returns:
        A split where trials cannot be scored together, else None; scores and failures are noted on the runs.
    """
    runs = [trial.run for trial in tuned]
    by_task = shared(runs, "evaluate", partial(_final_scores, tuned)) if runs else []
    if isinstance(by_task, Split):
        return by_task
    if isinstance(by_task, Ended):
        runs[0].outcome = by_task
        return None
    for trial, outcomes in zip(tuned, zip(*by_task, strict=True), strict=bool(by_task)):
        if trial.run.attempt(partial(_take_scores, trial, outcomes)) is None:
            trial.run.attempt(partial(_score_path, trial))
    return None


def _tasks(opened: Opened) -> list[Task]:
    """The trial's own, then the off-target suite."""
    return [opened.target, *(opened.task(ref) for ref in opened.run.config.evaluation.off_target)]


def _final_scores(tuned: Sequence[Tuned]) -> list[list[ScoreOutcome]]:
    """For each task the outcome of each trial."""
    from harness.nn.stack import stacked  # that module needs torch when it is imported

    opened, tasks = [trial.opened for trial in tuned], _tasks(tuned[0].opened)
    methods = [trial.last.learner.choices.method for trial in tuned if trial.last is not None]
    with ExitStack() as stack:
        model, count = stack.enter_context(stacked([trial.model for trial in tuned], methods))
        outcomes = [score_live(opened, model, count, tasks[0])]
        other = stack.enter_context(_for_other_tasks(tuned[0], model))
        return outcomes + [score_live(opened, other, count, task) for task in tasks[1:]]


@contextmanager
def _for_other_tasks(trial: Tuned, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model that is scored on tasks other than the trial's own; a method that brings another one runs alone.

    Args:
        trial: One of the trials.
        model: What their own task is scored with.
    """
    if trial.last is None or trial.last.learner.merged:
        yield model
        return
    with trial.last.learner.choices.method.elsewhere(model) as other:
        yield other


def _take_scores(trial: Tuned, outcomes: Sequence[ScoreOutcome]) -> Ended | None:
    """Note final scores; the first is the task's own, and the last point of the learning curve."""
    run = trial.run
    for outcome in map(finite, outcomes):
        if isinstance(outcome, Ended):
            return outcome
        if not run.evaluated and trial.last is not None:
            loss = trial.last.learner.losses.mean
            run.add_point(run.config.fidelity, trial.steps_done, loss, outcome.score.value)
        run.evaluated.append(outcome)
    return None


def _score_path(trial: Tuned) -> Ended | None:
    """Score a trial's model at the interpolation weights that its retention names, while it holds those parameters."""
    if trial.last is None:
        return None
    learner, tasks = trial.last.learner, _tasks(trial.opened)
    with trial.run.meter.phase("evaluate"):
        for weight in learner.choices.retention.path(trial.model, learner.setup):
            scores: list[Score] = []
            for task in tasks:
                outcome = finite(score_live([trial.opened], trial.model, 1, task)[0])
                if isinstance(outcome, Ended):
                    return outcome
                scores.append(outcome.score)
            trial.run.path.append(PathPoint(weight, tuple(scores)))
    return None


def score_live(trials: Sequence[Opened], model: PreTrainedModel, count: int, task: Task) -> list[ScoreOutcome]:
    """Score trials on their split, in bfloat16 on a GPU that has it; the base takes the same path.

    Args:
        trials: The trials, alike.
        model: Their models as one: rows [0:B] of a batch are the first's, [B:2B] the second's, and so on.
        count: How many they are.
        task: What to score.
    """
    import torch

    run, device = trials[0].run, model.device.type
    evaluation, models = run.config.evaluation, StackedModels(model, count, trials[0].base.ref.dtype)
    bfloat16 = resolve_precision("auto", device) == "bfloat16"
    with random_state_kept(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        evaluator, opened = run.process.evaluator, trials[0]
        template = run.process.template_of(opened.base)
        return evaluator.evaluate(models, opened.tokenizer, task, evaluation.split, evaluation.limit, template=template)
