"""What a report knows of a study: the database's rows, the study file, the plan and the backtest, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, StorageError, one_of
from harness.records.lost_work import Stop, lost_seconds, read_stops
from harness.records.paths import Paths
from harness.records.trial import TrialStatus

if TYPE_CHECKING:
    from pandas import DataFrame


FAILED = tuple(status.value for status in TrialStatus if not status.has_scores)

# Whole numbers that may be missing are read as DOUBLE: a missing one is NaN, as everywhere else.
_TRIALS = """
SELECT m.key, m.role, m.family, m.task, m.base_model, m.repetition, m.number, m.params AS searched, m.reused,
  t.status, t.reason, t.pipeline, t.stages, t.steps::DOUBLE AS steps, t.fidelity, t.seed::DOUBLE AS seed, t.split,
  t.notes, c.total_s, c.train_s, c.solo_train_s, c.seconds, c.cpu_s, c.gpu_s, c.trained_with::DOUBLE AS trained_with,
  c.utilisation, c.peak_memory_bytes::DOUBLE AS peak_memory_bytes, c.energy_j, c.money, c.solo_money,
  c.total_params::DOUBLE AS total_params, p.alone, p.harness_version, p.versions, p.hardware, p.python, p.git_commit, p.started_at
FROM members m LEFT JOIN trials t USING (key) LEFT JOIN costs c USING (key) LEFT JOIN provenance p USING (key)
WHERE m.study = ? ORDER BY m.base_model, m.task, m.role, m.family, m.number, m.repetition, m.key"""

_SCORES = """
SELECT m.key, m.role, m.family, m.task, m.base_model, m.repetition, m.number, t.pipeline, t.fidelity, t.steps, t.status,
  s.is_target, s.task AS scored, s.split, s.metric, s.value, s.n, s.higher_is_better, s.comparability, s.chance,
  b.value AS base_value
FROM members m JOIN trials t USING (key) JOIN scores s USING (key)
  LEFT JOIN base_scores b ON b.base_model = t.base_model AND b.base_revision = t.base_revision AND b.task = s.task
    AND b.split = s.split AND b.metric = s.metric AND b.comparability = s.comparability
WHERE m.study = ?
QUALIFY row_number() OVER (PARTITION BY m.key, m.role, m.family, m.number, m.repetition, s.task, s.split, s.metric
  ORDER BY (b.n = s.n) DESC NULLS LAST, b.n DESC) = 1
ORDER BY m.base_model, m.task, m.role, m.family, m.number, m.repetition, m.key, s.position"""

# Seconds along a curve are what training alone would have taken, since families are compared by them.
_CURVES = """
SELECT DISTINCT u.key, u.fraction, u.step, u.tokens, u.loss, u.score,
  u.train_seconds * CASE WHEN c.train_s > 0 THEN c.solo_train_s / c.train_s ELSE 1 END AS train_seconds
FROM curves u JOIN members m USING (key) JOIN costs c USING (key) WHERE m.study = ? ORDER BY u.key, u.step"""

_PATHS = """
SELECT m.key, m.role, m.family, m.task, m.base_model, m.repetition, m.number, t.fidelity, t.stages, p.tuned_weight,
  p.task = t.task AS is_target, p.task AS scored, p.split, p.metric, p.value, p.higher_is_better, p.comparability
FROM members m JOIN trials t USING (key) JOIN paths p USING (key)
WHERE m.study = ? ORDER BY m.base_model, m.task, m.role, m.family, m.number, m.repetition, m.key, p.tuned_weight"""


@dataclass(frozen=True, eq=False)  # told apart by identity: what is computed from one is kept for it
class StudyData:
    """Everything that sections may show, read once."""

    name: str
    spec: Mapping[str, Any]
    """The study file, as JSON."""
    plan: Mapping[str, Any] | None
    backtest: Mapping[str, Any] | None
    trials: DataFrame
    """One row per member of the study: why it ran, how it ended, what it cost, where. A member without a record has
    no status. `total_s`, `train_s` and `money` are what was really spent, its share of what trials did together;
    `solo_train_s` and `solo_money` are what it would have taken alone: methods are compared by nothing else."""
    scores: DataFrame
    """One row per member and evaluated task, with the base model's comparable score where there is one."""
    curves: DataFrame
    """One row per trial and point of its learning curve."""
    paths: DataFrame
    """One row per member, place on the way from base to tuned weights, and task; only where retention walked it."""
    stops: Sequence[Stop] = ()
    """Families that gave up before their budget was used."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds of attempts that no record has, by key."""

    @property
    def currency(self) -> str:
        """The currency of the study's price table."""
        return str(self.spec.get("prices", {}).get("currency", "USD"))

    @cached_property
    def ran(self) -> DataFrame:
        """Trials that have a record, each once."""
        return self.trials[self.trials["status"].notna()].drop_duplicates("key")

    @cached_property
    def failed(self) -> DataFrame:
        """Trials that ended without a score."""
        return self.ran[self.ran["status"].isin(FAILED)]


def load_study_data(paths: Paths, study: str) -> StudyData:
    """Read what there is to report of a study.

    Raises:
        SpecError: When there is no study of that name; the message lists those there are.
        StorageError: When the database is missing or a file beside it is damaged.
    """
    from harness.database.ingest import connect

    files = paths.study(study)
    known = [other.name for other in paths.started()]
    if study not in known:
        raise SpecError(
            one_of("study", study, known) + ("" if known else "none; run 'harness search' on a study first")
        )
    content = _read(files.spec)
    with connect(paths) as connection:
        trials, scores, curves, walked = (
            connection.execute(sql, [study]).df() for sql in (_TRIALS, _SCORES, _CURVES, _PATHS)
        )
    return StudyData(
        study,
        content.get("study", content),
        _read(files.plan) if files.plan.exists() else None,
        _read(paths.backtest) if paths.backtest.exists() else None,
        trials,
        scores,
        curves,
        walked,
        stops=read_stops(paths, study),
        lost=lost_seconds(paths, study),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} must hold whole JSON, but does not ({error}): delete it and run the study again"
        ) from error
    if not isinstance(content, dict):
        raise StorageError(
            f"{path} must hold a JSON object, but holds {type(content).__name__}: delete it and run again"
        )
    return content
