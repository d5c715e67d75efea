"""The database for other programs: every table as CSV or Parquet, a study's search as an Optuna storage."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from harness.database.ingest import SCHEMA, connect
from harness.database.rows import grouped, read_rows
from harness.errors import SpecError, UsageError, one_of
from harness.files import make_folder
from harness.records.paths import Paths
from harness.space import Choice, Distribution, Float, Integer, Scalar, Text
from harness.study.family import resolved_families
from harness.study.spec import StudySpec

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FORMATS = ("csv", "parquet")

_TRIALS = """
SELECT m.base_model, m.task, m.family, m.number, m.key, m.params, m.fidelity, t.status, t.reason, s.value,
  s.higher_is_better, w.worst AS forgetting, c.total_s, c.solo_s, p.started_at,
  (SELECT map(list(u.step), list(u.score)) FROM curves u WHERE u.key = m.key AND u.score IS NOT NULL) AS curve
FROM members m JOIN trials t USING (key) JOIN costs c USING (key) JOIN provenance p USING (key)
  LEFT JOIN scores s ON s.key = m.key AND s.is_target LEFT JOIN worst_forgetting w ON w.key = m.key
WHERE m.study = ? AND m.role = 'search'
QUALIFY row_number() OVER (PARTITION BY m.base_model, m.task, m.family, m.number ORDER BY m.fidelity DESC) = 1
ORDER BY m.base_model, m.task, m.family, m.number"""


@dataclass(frozen=True, kw_only=True)
class _Searched:
    """A trial of a search, at the highest fidelity that it reached."""

    base_model: str
    task: str
    family: str
    number: int
    key: str
    params: str
    """The searched values as JSON."""
    fidelity: float
    status: str
    reason: str
    value: float | None
    """Its validation score, where it has one."""
    higher_is_better: bool | None
    forgetting: float | None
    total_s: float
    solo_s: float
    started_at: datetime | None
    curve: Mapping[int, float] | None
    """Scores by step."""

    @property
    def cell(self) -> tuple[str, str, str]:
        """What an Optuna study is made of."""
        return self.base_model, self.task, self.family

    @property
    def values(self) -> Mapping[str, Scalar]:
        """The searched values."""
        values: Mapping[str, Scalar] = json.loads(self.params)
        return values


def export_tables(paths: Paths, folder: Path, file_format: str) -> tuple[Path, ...]:
    """Write every table and view to `folder/<name>.<format>`; files of these names there are replaced.

    Args:
        paths: Where the database is.
        folder: Where the files go; it is made where it does not exist.
        file_format: `csv` or `parquet`.

    Returns:
        The files, in the order of the schema.

    Raises:
        UsageError: For an unknown format.
        StorageError: When there is no database, or the folder cannot be written.
    """
    if file_format not in FORMATS:
        raise UsageError(one_of("format", file_format, list(FORMATS)))
    written = []
    make_folder(folder)
    with connect(paths) as connection:
        for table in SCHEMA:
            path = folder / f"{table.name}.{file_format}"
            csv = file_format == "csv"
            options = "FORMAT csv, HEADER" if csv else "FORMAT parquet, COMPRESSION zstd"
            target = str(path).replace("'", "''")  # DuckDB takes no parameter for the target of COPY
            columns = _harmless(connection.execute(f"DESCRIBE {table.name}").fetchall()) if csv else "*"
            connection.execute(
                f"COPY (SELECT {columns} FROM (FROM {table.name} ORDER BY ALL)) TO '{target}' ({options})"
            )
            written.append(path)
    return tuple(written)


def _harmless(described: Sequence[tuple[str, ...]]) -> str:
    """A table's columns for a SELECT, with an apostrophe before each text that a spreadsheet would run as a formula.

    As OWASP advises (CSV Injection); a text that is a number stays one.
    """
    columns = []
    for name, kind, *_ in described:
        column = f'"{name}"'
        if kind == "VARCHAR":
            runs = f"regexp_matches({column}, '^[=+@\\t\\r-]') AND TRY_CAST({column} AS DOUBLE) IS NULL"
            column = f"CASE WHEN {runs} THEN '''' || {column} ELSE {column} END AS {column}"
        columns.append(column)
    return ", ".join(columns)


def export_optuna(paths: Paths, study: str, path: Path) -> Path:
    """Write a study's search as an Optuna storage (SQLite) that optuna-dashboard opens: `optuna-dashboard sqlite:///PATH`.

    One Optuna study per cell, named `study/base model/task/family`. A trial that stopped below the full budget is
    pruned; one that failed has failed; user attributes hold key, status, reason, forgetting, the
    seconds that it took, and those that it would have taken alone.

    Args:
        paths: Where the database is.
        study: The study's name.
        path: The SQLite file; it is replaced where there is one.

    Raises:
        SpecError: When there is no such study, or its families no longer resolve.
        UsageError: When the target is a folder.
        StorageError: When there is no database, or the file cannot be written.
    """
    if path.is_dir():
        raise UsageError(
            f"--format optuna must have a file as its target, but '{path}' is a folder: name a file in it, for example "
            f"'{path / f'{study}.db'}'"
        )
    with connect(paths) as connection:
        specs = dict(connection.execute("SELECT study, spec FROM studies").fetchall())
        if study not in specs:
            raise SpecError(one_of("study", study, sorted(specs)))
        cells = grouped(read_rows(connection, _TRIALS, [study], _Searched), by=lambda trial: trial.cell)
    families = resolved_families(StudySpec.model_validate_json(specs[study]))
    make_folder(path.parent)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)  # of an export that was killed: Optuna would add to it
    try:
        _write_storage(beside, {"/".join((study, *cell)): (families[cell[2]].space, cells[cell]) for cell in cells})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _write_storage(path: Path, cells: Mapping[str, tuple[Mapping[str, Distribution], Sequence[_Searched]]]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
    try:
        for name, (space, trials) in cells.items():
            higher = next((trial.higher_is_better for trial in trials if trial.value is not None), True)
            created = optuna.create_study(
                storage=storage, study_name=name, direction="maximize" if higher else "minimize"
            )
            widened = _widened(space, [trial.values for trial in trials])
            created.add_trials([_frozen(widened, trial) for trial in trials])
    finally:
        storage.engine.dispose()  # closes SQLite's file, which is renamed next


def _widened(space: Mapping[str, Distribution], points: Sequence[Mapping[str, Scalar]]) -> dict[str, Distribution]:
    """The space with every recorded value in it: a plug-in's range may have been narrowed since."""
    return {name: _holding(d, [point[name] for point in points if name in point]) for name, d in space.items()}


def _holding(distribution: Distribution, values: Sequence[Scalar]) -> Distribution:
    if all(distribution.contains(value) for value in values):
        return distribution
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if isinstance(distribution, Choice | Text) or len(numbers) < len(values):
        known = distribution.choices if isinstance(distribution, Choice) else ()
        return Choice(tuple(dict.fromkeys((*known, *values))), distribution.default)
    # Optuna refuses a trial whose value lies outside its distribution
    low, high = min(distribution.low, *numbers), max(distribution.high, *numbers)
    whole = isinstance(distribution, Integer) and all(isinstance(number, int) for number in numbers)
    kind = Integer if whole else Float
    return kind(low, high, distribution.default, distribution.log and low > 0)  # type: ignore[arg-type]


def _frozen(space: Mapping[str, Distribution], trial: _Searched) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    from harness.search.memory import optuna_distribution

    params = {name: value for name, value in trial.values.items() if name in space}
    ended = TrialState.COMPLETE if trial.fidelity == 1 else TrialState.PRUNED
    texts = {"key": trial.key, "status": trial.status, "reason": trial.reason, "forgetting": trial.forgetting}
    frozen = create_trial(
        state=TrialState.FAIL if trial.value is None else ended,
        value=trial.value,
        params=params,
        distributions={name: optuna_distribution(space[name]) for name in params},
        user_attrs={name: text for name, text in texts.items() if text not in (None, "")}
        | {"seconds": trial.total_s, "solo_seconds": trial.solo_s},
        intermediate_values=dict(trial.curve or {}),
    )
    if trial.started_at is not None:  # Optuna stamps the moment of the export otherwise
        frozen.datetime_start = trial.started_at
        frozen.datetime_complete = trial.started_at + timedelta(seconds=trial.total_s)
    return frozen
