"""What the database knows of a task and a base model before pipelines are ranked for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.database.ingest import connect
from harness.models.facts import model_features
from harness.recommend.candidates import Request
from harness.records.paths import Paths
from harness.tasks.facts import task_features

if TYPE_CHECKING:
    from harness.models.base_model import BaseModel
    from harness.tasks.task import Task


def request_for(paths: Paths, task: Task, base: BaseModel, **limits: Any) -> Request:
    """The request for a resolved task and base model; its base score is looked up in the database.

    Args:
        paths: Of the results folder.
        task: That advice is asked for.
        base: The base model to be tuned.
        **limits: Further fields of `Request`.

    Raises:
        StorageError: When there is no database.
    """
    return Request(
        task=task.name,
        task_facts=task_features(task),
        base_model=base.ref.name,
        model_facts=model_features(base),
        base_score=recorded_base(paths, task, base),
        higher_is_better=task.higher_is_better,
        scale=task.scale,
        metric=task.metric,
        **limits,
    )


_OF_THIS_PAIR = (
    "t.status = 'complete' AND t.base_model = ? AND t.base_revision = ? AND t.chat_template = ? AND t.task = ? "
    "AND t.task_fingerprint = ?"
)
"""Condition: a trial ran to its end on a task and a base model as they are now; `_pair` has its parameters."""


def _pair(task: Task, base: BaseModel) -> list[str]:
    return [base.ref.name, base.ref.revision, base.ref.chat_template, task.name, task.ref.fingerprint]


def recorded_base(paths: Paths, task: Task, base: BaseModel) -> float | None:
    """The base's validation score on this very task, on the most items; None where its file or data were others.

    Args:
        paths: Of the results folder.
        task: Whose fingerprint the trial must have.
        base: Whose revision it must have.

    Raises:
        StorageError: When there is no database.
    """
    with connect(paths) as connection:
        rows = connection.execute(
            "SELECT avg(s.value) FROM trials t JOIN scores s ON s.key = t.key AND s.is_target "
            f"WHERE t.steps = 0 AND {_OF_THIS_PAIR} AND s.metric = ? AND s.split = 'validation' "
            "GROUP BY s.comparability, s.n ORDER BY s.n DESC, s.comparability",
            [*_pair(task, base), task.metric],
        ).fetchall()
    return float(rows[0][0]) if rows else None


def confirmed_in(paths: Paths, task: Task, base: BaseModel) -> list[str]:
    """The studies that confirmed pipelines on this very task and base model, by name; none where these were others.

    Args:
        paths: Of the results folder.
        task: Whose fingerprint the trials must have.
        base: Whose revision they must have.

    Raises:
        StorageError: When there is no database.
    """
    with connect(paths) as connection:
        rows = connection.execute(
            "SELECT DISTINCT study FROM members m JOIN trials t USING (key) "
            f"WHERE m.role = 'confirm' AND {_OF_THIS_PAIR} ORDER BY study",
            _pair(task, base),
        ).fetchall()
    return [str(study) for (study,) in rows]


def most_evidence(paths: Paths) -> str | None:
    """The base model with the most trials of our own that trained something; None when there is none."""
    with connect(paths) as connection:
        row = connection.execute(
            "SELECT base_model FROM trials JOIN provenance USING (key) WHERE steps > 0 AND coalesce(source, '') = '' "
            "GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
        ).fetchone()
    return str(row[0]) if row else None
