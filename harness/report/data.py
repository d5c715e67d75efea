"""What a report knows of a study: the database's rows, the study file, the plan and the backtest, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.database.ingest import connect, connect_now
from harness.database.items import Habit, Outcomes, load_habits, load_likelihoods, load_outcomes
from harness.database.rows import read_rows
from harness.errors import SpecError, StorageError, one_of
from harness.files import parse_json
from harness.recommend.backtest import Backtest
from harness.records.bill import Halt, read_halt
from harness.records.codec import Misfit, decode
from harness.records.lost_work import Stop, lost_seconds, read_stops
from harness.records.paths import Paths
from harness.records.study_trials import read_members
from harness.report.rows import (
    CURVES,
    PARTS,
    PATHS,
    SCORES,
    TRIALS,
    CurveRow,
    PartRow,
    PathRow,
    ScoreRow,
    TrialRow,
    each_once,
)
from harness.report.study_files import Forecasts, StudyFile

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyData:
    """Everything that sections may show, read once.

    Two of them are equal only if they are the same object: what is computed from one is kept for it.
    """

    name: str
    file: StudyFile
    forecasts: Forecasts | None
    """What the plan predicted; None where no plan was kept."""
    backtest: Backtest | None
    """The recommender's test on all studies of the results folder; None where it has not been run."""
    trials: Sequence[TrialRow]
    """One row per member of the study, with or without a record."""
    scores: Sequence[ScoreRow]
    """One row per member and evaluated task."""
    curves: Sequence[CurveRow]
    """One row per trial and point of its learning curve."""
    paths: Sequence[PathRow]
    """One row per member, place between base and tuned weights, and task; only where retention scored such places."""
    parts: Sequence[PartRow] = ()
    """One row per confirmed member and part of a group that was scored; only where there are groups."""
    outcomes: Outcomes = field(default_factory=Outcomes)
    """What confirmed runs and the base made of single items."""
    likelihoods: Outcomes = field(default_factory=Outcomes)
    """How unlikely each item's right answer is, in nats, where that was asked for."""
    habits: Mapping[tuple[str, str], tuple[Habit, Habit | None]] = field(default_factory=dict)
    """What each confirmed run, and the base, answers most often, by the trial's key and the scored task."""
    stops: Sequence[Stop] = ()
    """Families that gave up before their budget was used."""
    halt: Halt | None = None
    """Where the study's own budget stopped it; None where it did not."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds of attempts that left no record, by the trial's key."""

    @cached_property
    def ran(self) -> Sequence[TrialRow]:
        """Trials that have a record, each once."""
        return each_once(trial for trial in self.trials if trial.status is not None)

    @cached_property
    def failed(self) -> Sequence[TrialRow]:
        """Trials that ended without a score."""
        return [trial for trial in self.ran if trial.failed]


def load_study_data(paths: Paths, study: str, confirmed_now: bool = False) -> StudyData:
    """Read what there is to report of a study.

    Args:
        paths: Of the results folder.
        study: Its name.
        confirmed_now: Whether nothing is read but what was confirmed and the base, from their records as they are now and
            not from the database.

    Raises:
        SpecError: When there is no study of that name; the message lists those there are.
        StorageError: When the database is missing or a file beside it is damaged.
    """
    files = paths.study(study)
    started = [other.name for other in paths.started()]
    if study not in started:
        raise SpecError(
            one_of("study", study, started) + ("" if started else "none; run 'harness search' on a study first")
        )
    # The small files come first: where one is damaged, its message is clearer than that of a missing database.
    file = StudyFile.of(_read(files.spec))
    forecasts = _forecasts(files.plan) if files.plan.exists() else None
    backtest = _backtest(paths.backtest) if paths.backtest.exists() else None
    with _confirmed(paths, study) if confirmed_now else connect(paths) as connection:
        return StudyData(
            name=study,
            file=file,
            forecasts=forecasts,
            backtest=backtest,
            trials=read_rows(connection, TRIALS, [study], TrialRow),
            scores=read_rows(connection, SCORES, [study], ScoreRow),
            curves=read_rows(connection, CURVES, [study], CurveRow),
            paths=read_rows(connection, PATHS, [study], PathRow),
            parts=read_rows(connection, PARTS, [study], PartRow),
            outcomes=load_outcomes(connection, study),
            likelihoods=load_likelihoods(connection, study),
            habits=load_habits(connection, study),
            stops=read_stops(paths, study),
            halt=read_halt(files),
            lost=lost_seconds(paths, study),
        )


def _confirmed(paths: Paths, study: str) -> AbstractContextManager[DuckDBPyConnection]:
    return connect_now(paths, {member.key for member in read_members(paths, study) if member.role != "search"})


def _forecasts(path: Path) -> Forecasts:
    try:
        return Forecasts.of(_read(path))
    except (AttributeError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} must hold a plan, but lacks a part of it ({error!r}): delete it and run the study again"
        ) from error


def _backtest(path: Path) -> Backtest:
    try:
        return decode(Backtest, _read(path))
    except Misfit as error:
        raise StorageError(
            f"{path} must hold a backtest, but does not ({error}): run 'harness backtest' again"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path} must hold whole JSON, but does not ({error}): delete it and run the study again"
        ) from error
    if not isinstance(content, dict):
        raise StorageError(
            f"{path} must hold a JSON object, but holds {type(content).__name__}: delete it and run again"
        )
    return content
