"""Item outcomes of a study's confirmed runs as arrays, beside what the base model made of the same items.

    with connect(paths) as connection:
        outcomes = load_outcomes(connection, "my_study")
    own = outcomes.matrix(keys, "newfacts")      # (runs, items) of the trials of one family, in the order of `keys`
    base = outcomes.base(keys[0], "newfacts")    # (items,), the same items in the same order, or None

Values are the metric's own, so that less is better for a loss. Perplexity, BLEU or an F1 over all answers belong to all items at
once: there an item has its jackknife pseudo-value. Values are there only where their mean is the score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.forgetting import nats_sql

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from numpy.typing import NDArray

MISSING = "no outcomes of single items were kept"
DIFFERENT = "its runs were scored on different items"
WHOLE = "its metric is computed over all items at once, and what each of them brings to it was not kept"


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemScores:
    """What one trial, and the base model, made of the items of one task."""

    identity: str
    """Equal where the items are the same ones."""
    values: NDArray[np.float64]
    """Shape (items,), in an order that depends on nothing but the items."""
    base: NDArray[np.float64] | None
    """Of the same items in the same order; None where the base model's score may not be compared or lacks one of them."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Item outcomes of confirmed runs, by trial and scored task (a task, or a group of tasks)."""

    scores: Mapping[tuple[str, str], ItemScores] = field(default_factory=dict)
    """By the trial's key and the scored task."""
    whole: Collection[tuple[str, str]] = ()
    """Where there are items whose mean is not the score."""

    def matrix(self, keys: Sequence[str], scored: str) -> NDArray[np.float64] | None:
        """Outcomes of several trials on one task, shape (runs, items); None where `gap` says why."""
        own = [self.scores.get((key, scored)) for key in keys]
        found = [one for one in own if one is not None]
        if not found or len(found) < len(own) or len({one.identity for one in found}) > 1:
            return None
        return np.array([one.values for one in found])

    def base(self, key: str, scored: str) -> NDArray[np.float64] | None:
        """The base model's outcomes, shape (items,), on the items of a trial, where its score may be compared."""
        own = self.scores.get((key, scored))
        return None if own is None else own.base

    def gap(self, keys: Sequence[str], scored: str) -> str | None:
        """Why there is no `matrix`, as half a sentence; None where there is one."""
        if any((key, scored) in self.whole for key in keys):
            return WHOLE
        own = [self.scores.get((key, scored)) for key in keys]
        if not own or None in own:
            return MISSING
        return DIFFERENT if len({one.identity for one in own if one is not None}) > 1 else None


def _items(own: str, base: str) -> str:
    """One row per confirmed trial and task, or task of a group: its items in order, and the base model's.

    Args:
        own: What is wanted of an item `i` of a trial's, whose metric is `l.metric`.
        base: The same of an item `b` of the base's.
    """
    return f"""
WITH runs AS (SELECT DISTINCT m.key FROM members m JOIN trials t USING (key)
    WHERE m.study = ? AND m.role = 'confirm' AND t.status = 'complete' AND t.split = 'test'),
  leaves AS (
    SELECT s.key, s.task AS scored, s.task, s.split, s.metric, s.comparability, s.value, s.n FROM scores s JOIN runs USING (key)
    WHERE NOT EXISTS (SELECT 1 FROM parts p WHERE p.key = s.key AND p.whole = s.task)
    UNION
    SELECT p.key, p.whole, p.task, p.split, p.metric, p.comparability, s.value, p.n FROM parts p JOIN runs USING (key)
      JOIN scores s ON s.key = p.key AND s.task = p.whole
    WHERE p.counts AND NOT p.is_group)
SELECT l.key, l.scored, l.task, any_value(l.value) AS value,
  md5(string_agg(i.doc_hash, ',' ORDER BY i.doc_hash)) AS identity,
  list({own} ORDER BY i.doc_hash, i.value) AS own,
  CASE WHEN count({base}) = count(*) THEN list({base} ORDER BY i.doc_hash, i.value) END AS base
FROM leaves l JOIN trials t USING (key) JOIN items i ON i.key = l.key AND i.task = l.task AND i.split = l.split
    AND i.metric = l.metric
  LEFT JOIN base_items b ON b.base_model = t.base_model AND b.base_revision = t.base_revision AND b.task = l.task
    AND b.split = l.split AND b.metric = l.metric AND b.comparability = l.comparability AND b.doc_hash = i.doc_hash
GROUP BY l.key, l.scored, l.task
HAVING count({own}) = count(*) ORDER BY l.key, l.scored, l.task"""


def load_outcomes(connection: DuckDBPyConnection, study: str) -> Outcomes:
    """The item outcomes of a study's confirmed runs, off-target tasks included.

    Args:
        connection: To the database.
        study: Its name.
    """
    base = "CASE WHEN i.pseudo_value IS NULL THEN b.value WHEN b.pseudo_n = l.n THEN b.pseudo_value END"
    return _loaded(connection, study, ("coalesce(i.pseudo_value, i.value)", base), are_scores=True)


def load_likelihoods(connection: DuckDBPyConnection, study: str) -> Outcomes:
    """How unlikely the right answers of items are, in nats per byte; more is worse.

    Perplexities and bits per byte say it themselves, in nats per whatever they count; for other metrics it stands beside
    each item that was scored by likelihood.

    Args:
        connection: To the database.
        study: The study's name.
    """
    return _loaded(connection, study, (_nats("i"), _nats("b")), are_scores=False)


@dataclass(frozen=True, kw_only=True)
class Habit:
    """The answer that a model gives most often."""

    answer: str
    share: float
    """Of all items."""
    items: int


def load_habits(connection: DuckDBPyConnection, study: str) -> Mapping[tuple[str, str], tuple[Habit, Habit | None]]:
    """What each confirmed run answers most often, and what the base does on the same items (None where it was not kept).

    Args:
        connection: To the database.
        study: Its name.

    Returns:
        By the trial's key and the scored task; only where all answers were kept.
    """
    found: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    rows = connection.execute(_items("i.prediction", "b.prediction"), [study]).fetchall()
    for key, scored, _task, _value, _identity, own, base in rows:
        both = found.setdefault((key, scored), ([], []))
        both[0].extend(own)
        both[1].extend(base or ())
    return {
        place: (_habit(own), _habit(base) if len(base) == len(own) else None) for place, (own, base) in found.items()
    }


def _habit(answers: Sequence[str]) -> Habit:
    (answer, count), *_ = Counter(answers).most_common(1)
    return Habit(answer=answer, share=count / len(answers), items=len(answers))


def _nats(item: str) -> str:
    own = nats_sql("l.metric", f"{item}.value")
    return f"CASE WHEN isfinite({own}) THEN {own} WHEN {own} IS NULL THEN {item}.answer_bits * ln(2) END"


def _loaded(connection: DuckDBPyConnection, study: str, wanted: tuple[str, str], are_scores: bool) -> Outcomes:
    parts: dict[tuple[str, str], list[ItemScores]] = {}
    scores: dict[tuple[str, str], float] = {}
    for key, scored, task, value, identity, own, base in connection.execute(_items(*wanted), [study]).fetchall():
        values = np.array(own, dtype=float)
        of_base = None if base is None else np.array(base, dtype=float)
        parts.setdefault((key, scored), []).append(
            ItemScores(identity=f"{task}:{identity}", values=values, base=of_base)
        )
        scores[key, scored] = value
    found = {place: _joined(own, scores[place] if are_scores else None) for place, own in parts.items()}
    return Outcomes(
        {place: one for place, one in found.items() if one is not None},
        frozenset(place for place, one in found.items() if one is None),
    )


def _joined(parts: Sequence[ItemScores], score: float | None) -> ItemScores | None:
    """The items of a task, or of a group's tasks, weighted so that their mean is the score; None where none is.

    Where they make no score, each counts once.
    """
    total = sum(len(part.values) for part in parts)
    # A group's score is the mean of all items, or that of its tasks' means, in which items of a small task weigh more.
    for weights in ([1.0] * len(parts), [total / len(parts) / len(part.values) for part in parts]):
        values = np.concatenate([part.values * weight for part, weight in zip(parts, weights, strict=True)])
        if score is None or abs(values.mean() - score) <= 1e-6 * max(1.0, abs(score)):
            bases = [part.base * weight for part, weight in zip(parts, weights, strict=True) if part.base is not None]
            return ItemScores(
                identity=" ".join([*(part.identity for part in parts), f"{weights}"]),
                values=values,
                base=np.concatenate(bases) if len(bases) == len(parts) else None,
            )
    return None
