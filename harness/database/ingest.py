"""The database: records and studies' member lists as DuckDB tables, derived, rebuilt whole, deletable at no loss.

DuckDB parses the records itself, against the declared types of `schema`; what it cannot read is reported and left out.
"""

from __future__ import annotations

import fcntl
import glob
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.database.schema import RECORD, SCHEMA, TABLES, VIEWS, Table, schema_text
from harness.errors import StorageError
from harness.records.paths import Paths
from harness.records.results import read_result
from harness.records.trial import SCHEMA_VERSION, TrialStatus

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["SCHEMA", "IngestSummary", "connect", "ingest", "schema_text"]

MEMBER = """{"key":"VARCHAR","role":"VARCHAR","family":"VARCHAR","task":"VARCHAR","base_model":"VARCHAR",
"repetition":"BIGINT","number":"BIGINT","params":"JSON","reused":"BOOLEAN","asked_at":"VARCHAR","fidelity":"DOUBLE"}"""
"""A line of a study's members.jsonl."""

VALID = f"""r IS NOT NULL AND r.schema_version = {SCHEMA_VERSION} AND r.status IN {tuple(s.value for s in TrialStatus)}
  AND len(r.config.pipeline.stages) > 0 AND r.config.pipeline.base_model.revision IS NOT NULL
  AND r.config.task.fingerprint IS NOT NULL AND r.config.steps IS NOT NULL AND r.config.fidelity IS NOT NULL
  AND r.config.seed IS NOT NULL AND r.config.evaluation.split IS NOT NULL AND r.scores IS NOT NULL
  AND r.curve IS NOT NULL AND r.cost.seconds IS NOT NULL AND r.provenance.started_at IS NOT NULL
  AND len(list_filter(r.scores, lambda s: s.value IS NULL OR s.comparability IS NULL
    OR s.higher_is_better IS NULL)) = 0"""
"""When a record is whole. A score without a finite value is no score."""


@dataclass(frozen=True)
class Damaged:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class IngestSummary:
    """What `ingest` read."""

    trials: int
    members: int
    studies: int
    damaged: tuple[Damaged, ...]
    seconds: float

    def text(self) -> str:
        """For a terminal: what was read, and one line for each file that was left out."""
        head = f"{self.trials} trials of {self.studies} studies in {self.seconds:.1f} s"
        return "\n".join([head, *(f"left out: {file.reason}" for file in self.damaged)])


def ingest(paths: Paths) -> IngestSummary:
    """Build the database from every record and study folder; it replaces the old one when it is whole.

    Rebuilding from nothing is the only mode: it is fast enough, and a second code path could disagree.

    Raises:
        StorageError: When another process is building it, or the disk refuses. Never for a damaged file.
    """
    start = time.monotonic()
    with _only_one(paths):
        beside = paths.database.with_name(f".{paths.database.name}.new")
        beside.unlink(missing_ok=True)
        try:
            with _opened(beside, read_only=False) as connection:
                damaged = _build(connection, paths)
                trials, members, studies = (_count(connection, table) for table in ("trials", "members", "studies"))
            os.replace(beside, paths.database)
        finally:
            beside.unlink(missing_ok=True)
    return IngestSummary(trials, members, studies, damaged, time.monotonic() - start)


@contextmanager
def connect(paths: Paths, read_only: bool = True) -> Iterator[DuckDBPyConnection]:
    """The database, closed on leaving.

    Raises:
        StorageError: When there is none yet, or another process has it open for writing.
    """
    if not paths.database.exists():
        raise StorageError(f"{paths.database} must exist, but does not: run 'harness database' first")
    with _opened(paths.database, read_only) as connection:
        yield connection


@contextmanager
def _opened(path: Path, read_only: bool) -> Iterator[DuckDBPyConnection]:
    import duckdb

    try:
        connection = duckdb.connect(str(path), read_only=read_only)
    except duckdb.Error as error:
        held = "lock" in str(error).lower()
        problem = "another process has it open" if held else " ".join(str(error).split())[:200]
        remedy = "close that process" if held else "delete it, since it is derived from the records"
        raise StorageError(f"{path} could not be opened ({problem}): {remedy}, then run 'harness database'") from error
    try:
        connection.execute("SET enable_progress_bar = false")  # it goes to stdout, where results go
        yield connection
    except duckdb.IOException as error:
        raise StorageError(f"{path} could not be used ({error}): free space or fix permissions, then again") from error
    finally:
        connection.close()


@contextmanager
def _only_one(paths: Paths) -> Iterator[None]:
    """Hold the ingest lock; the kernel drops it with the process, so a killed ingest leaves nothing to clean up."""
    path = paths.database_lock
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except BlockingIOError as error:
        raise StorageError(
            f"{paths.database} is being built by another process: wait until it has ended, then run again"
        ) from error
    except OSError as error:
        raise StorageError(
            f"{error.filename or path} could not be written ({error.strerror}): fix permissions or free space"
        ) from error


def _build(connection: DuckDBPyConnection, paths: Paths) -> tuple[Damaged, ...]:
    connection.execute("SET preserve_insertion_order = false")
    for table in TABLES:
        columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
        connection.execute(f"CREATE TABLE {table.name} ({columns})")
        _comment(connection, "TABLE", table.name, table.meaning)
        for column in table.columns:
            _comment(connection, "COLUMN", f"{table.name}.{column.name}", column.meaning)
    damaged = [*_stage_records(connection, paths), *_stage_studies(connection, paths)]
    for table in TABLES:
        if table.source:
            _fill(connection, table, table.source)
    damaged += _fill_items(connection, paths)
    for file in damaged:
        connection.execute("INSERT INTO damaged VALUES (?, ?)", [str(file.path), file.reason])
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        _comment(connection, "VIEW", view.name, view.meaning)
    return tuple(damaged)


def _comment(connection: DuckDBPyConnection, kind: str, name: str, text: str) -> None:
    quoted = text.replace("'", "''")
    connection.execute(f"COMMENT ON {kind} {name} IS '{quoted}'")


def _fill(connection: DuckDBPyConnection, table: Table, source: str, values: list[Any] | None = None) -> None:
    columns = ", ".join(f"CAST({column.source} AS {column.type})" for column in table.columns)
    connection.execute(f"INSERT INTO {table.name} SELECT {columns} FROM {source}", values or [])


def _count(connection: DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0


def _stage_records(connection: DuckDBPyConnection, paths: Paths) -> list[Damaged]:
    """Read all whole records into the temporary table `records`; returns the others."""
    _stage(connection, "records", paths.records(), RECORD)
    # where a field is missing VALID is NULL, not false
    rows = connection.execute(f"SELECT path FROM records WHERE ({VALID}) IS NOT TRUE ORDER BY path").fetchall()
    if rows:
        connection.execute(f"DELETE FROM records WHERE ({VALID}) IS NOT TRUE")
    return [Damaged(Path(path), _reason(Path(path))) for (path,) in rows]


def _stage_studies(connection: DuckDBPyConnection, paths: Paths) -> list[Damaged]:
    """Read studies' folders into the temporary tables `staged_studies` (study, spec) and `staged_members` (study, m)."""
    studies = paths.studies()
    _stage(connection, "specs", (str(study.spec) for study in studies), '"JSON"')
    _stage(connection, "lines", (str(study.members) for study in studies), MEMBER, lines=True)
    connection.execute(
        """CREATE TEMP TABLE staged_studies AS SELECT key AS study, r AS spec FROM specs WHERE r IS NOT NULL;
        CREATE TEMP TABLE staged_members AS SELECT key AS study, r AS m FROM lines WHERE r.key IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY path, r.key, r.role, r.family, r.number ORDER BY line) = 1"""
    )
    damaged = connection.execute(
        "SELECT path, line FROM specs WHERE r IS NULL UNION ALL SELECT path, line FROM lines WHERE r.key IS NULL ORDER BY ALL"
    ).fetchall()
    return [
        Damaged(Path(path), f"{path}, line {line}, is cut short or no JSON: run the study again")
        for path, line in damaged
    ]


_FOLDER = r"regexp_extract(path, '([^/\\]+)[/\\][^/\\]+$', 1)"
CHUNK = 10_000
"""Files read before DuckDB parses them: bounds memory to some tens of megabytes."""


def _stage(
    connection: DuckDBPyConnection, table: str, files: Iterable[str], structure: str, lines: bool = False
) -> None:
    """Parse every file (or line) that is there to (key, path, line, r): its folder's name, itself, r NULL where it fails.

    DuckDB's own `read_blob` costs three times the CPU of reading here: it opens each small file several times.
    """
    import pyarrow as pa

    text = "SELECT path, 1 AS line, TRY(decode(content)) AS text FROM chunk"
    if lines:
        text = f"""SELECT path, line, text FROM (SELECT path, unnest(parts) AS text, generate_subscripts(parts, 1) AS line
                   FROM (SELECT path, string_split(text, chr(10)) AS parts FROM ({text}))) WHERE trim(text) != ''"""
    parse = f"SELECT {_FOLDER} AS key, path, line, TRY(json_transform(text, '{' '.join(structure.split())}')) AS r FROM ({text})"
    empty, remaining = pa.schema([("path", pa.string()), ("content", pa.binary())]).empty_table(), iter(files)
    connection.register("chunk", empty)
    connection.execute(f"CREATE TEMP TABLE {table} AS {parse}")
    while names := list(islice(remaining, CHUNK)):
        pairs = [(name, content) for name in names if (content := _read(name)) is not None]
        columns = [[name for name, _ in pairs], [content for _, content in pairs]]
        connection.register("chunk", pa.table(columns, schema=empty.schema))
        connection.execute(f"INSERT INTO {table} {parse}")
    connection.unregister("chunk")


def _read(path: str) -> bytes | None:
    """The file's bytes, none where it cannot be read, None where it is not there (a trial still running)."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError:
        return b""


def _reason(path: Path) -> str:
    try:
        read_result(path)
    except StorageError as error:
        return str(error)
    return f"{path} holds a value of the wrong type or a score that is no number: delete it and run the study again"


def _fill_items(connection: DuckDBPyConnection, paths: Paths) -> list[Damaged]:
    """Item outcomes of test-split trials; all files in one go, and one by one where that fails."""
    keys = connection.execute("SELECT key FROM trials WHERE split = 'test' ORDER BY key").fetchall()
    files = [path for (key,) in keys if (path := paths.items(key)).exists()]
    table = next(table for table in TABLES if table.name == "items")
    if not files or _try_items(connection, table, files) is None:
        return []
    tried = ((path, _try_items(connection, table, [path])) for path in files)
    return [
        Damaged(path, f"{path} is not a whole Parquet file ({e}): delete its trial, run again")
        for path, e in tried
        if e
    ]


def _try_items(connection: DuckDBPyConnection, table: Table, files: list[Path]) -> str | None:
    import duckdb

    try:
        names = [glob.escape(path.as_posix()) for path in files]
        _fill(connection, table, "read_parquet(?, filename = true, union_by_name = true)", [names])
    except duckdb.Error as error:
        return " ".join(str(error).split())[:120]
    return None
