"""The score of a group of tasks from theirs, by lm-eval's own rule; its parts are kept beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.records.codec import fingerprint
from harness.records.trial import PartScore, Score

if TYPE_CHECKING:
    from harness.tasks.task import Task


def group_score(task: Task, scores: Mapping[Task, Score]) -> Score:
    """The one score of a group: a mean over its tasks, or over its members where lm-eval has no rule for it.

    Args:
        task: The group; a task by itself has its own score.
        scores: Of every task in it.
    """
    from lm_eval.api.metrics import aggregate_subtask_metrics

    group = task.group
    if group is None:
        return scores[task]
    leaves = task.leaves
    if group.used is None:
        counted, by_size = [group_score(member, scores) for member in task.members], False
    else:
        counted, by_size = [scores[leaves[place]] for place in group.counted], group.used.weight_by_size
    sizes = [score.n for score in counted]

    def pooled(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(aggregate_subtask_metrics(known, sizes, by_size)) if len(known) == len(counted) else None

    return Score(
        task=task.name,
        split=counted[0].split,
        metric=task.metric,
        value=float(aggregate_subtask_metrics([score.value for score in counted], sizes, by_size)),
        stderr=_stderr(counted, sizes, by_size),
        n=sum(sizes),
        higher_is_better=task.higher_is_better,
        # Not only of what counts: a part that does not is shown beside those that do.
        comparability=fingerprint([task.ref.fingerprint, [scores[leaf].comparability for leaf in leaves]]),
        chance=pooled([score.chance for score in counted]) if task.chance is None else task.chance,
        scale=task.scale,
        majority=pooled([score.majority for score in counted]),
    )


def part_scores(task: Task, scores: Mapping[Task, Score]) -> tuple[PartScore, ...]:
    """The scores of what a group is made of, each group before its members; a task that counts twice stands twice.

    Args:
        task: The group.
        scores: Of every task in it.
    """
    return tuple(_parts(task, scores, task.name, _counted(task)))


def _parts(task: Task, scores: Mapping[Task, Score], whole: str, counted: set[Task]) -> Iterator[PartScore]:
    for member in task.members:
        own = group_score(member, scores)
        known = {name: getattr(own, name) for name in own.__dataclass_fields__}
        counts = any(leaf in counted for leaf in member.leaves)
        yield PartScore(**known, whole=whole, parent=task.name, is_group=member.group is not None, counts=counts)
        yield from _parts(member, scores, whole, counted)


def _counted(task: Task) -> set[Task]:
    """The tasks that a group's score is made of."""
    if task.group is None:
        return {task}
    if task.group.used is None:
        return set().union(*map(_counted, task.members))
    return {task.leaves[place] for place in task.group.counted}


def _stderr(scores: Sequence[Score], sizes: Sequence[int], by_size: bool) -> float | None:
    """Of the mean, from the parts' own; None where one has none, or has one item only."""
    from lm_eval.api.metrics import pooled_sample_stderr, unweighted_mean_stderr

    known = [score.stderr for score in scores if score.stderr is not None]
    if len(known) < len(scores) or sum(sizes) == len(sizes):
        return None
    error = float(pooled_sample_stderr(known, list(sizes)) if by_size else unweighted_mean_stderr(known))
    return error if math.isfinite(error) else None
