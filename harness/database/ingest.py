"""The database: records and studies' member lists as DuckDB tables, derived, rebuilt whole, deletable at no loss.

Python judges what is believed, by the same code that every other reader uses; DuckDB parses it, to types that `schema`
derives from the record classes. What is not believed is reported and left out.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.database.schema import SCHEMA, TABLES, Table, schema_text, structure
from harness.database.views import VIEWS
from harness.errors import StorageError
from harness.files import parse_json
from harness.records.bundle import bundled
from harness.records.codec import canonical_json, decode
from harness.records.paths import Paths
from harness.records.results import current, is_intact, read_current
from harness.records.study_trials import Member
from harness.records.trial import TrialResult
from harness.records.turns import my_turn

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["SCHEMA", "IngestSummary", "connect", "connect_now", "ingest", "schema_text"]


@dataclass(frozen=True)
class Damaged:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
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
    with my_turn(paths.database_lock, f"builds {paths.database}"):
        beside = paths.database.with_name(f".{paths.database.name}.new")
        beside.unlink(missing_ok=True)
        try:
            with _opened(beside, read_only=False) as connection:
                damaged = _build(connection, paths)
                trials, members, studies = (_count(connection, table) for table in ("trials", "members", "studies"))
            os.replace(beside, paths.database)  # readers of the old one keep it until they close it
        finally:
            beside.unlink(missing_ok=True)
    return IngestSummary(
        trials=trials, members=members, studies=studies, damaged=damaged, seconds=time.monotonic() - start
    )


@contextmanager
def connect(paths: Paths, read_only: bool = True) -> Iterator[DuckDBPyConnection]:
    """The database, closed on leaving.

    Raises:
        StorageError: When there is none yet, another process has it open for writing, or another version built it.
    """
    import duckdb

    if not paths.database.exists():
        raise StorageError(f"{paths.database} must exist, but does not: run 'harness database' first")
    with _opened(paths.database, read_only) as connection:
        try:
            yield connection
        except (duckdb.BinderException, duckdb.CatalogException) as error:
            # Only the package's own queries run here, so that a missing name is one that the file should have.
            [problem, *_] = str(error).splitlines()
            raise StorageError(
                f"{paths.database} must be of this version of harness, but is not ({problem}): "
                "run 'harness database' to build it anew"
            ) from error
        except duckdb.Error as error:  # it was written whole, so that the file has changed since
            raise StorageError(
                f"{paths.database} must be whole, but is not ({error}): run 'harness database' to build it anew"
            ) from error


@contextmanager
def connect_now(paths: Paths, keys: Collection[str]) -> Iterator[DuckDBPyConnection]:
    """A database in memory of a few trials as their records are now, closed on leaving; the one on disk may be older.

    Args:
        paths: Where records and studies are.
        keys: Of these trials; those that have no record yet are left out.
    """
    with _opened(":memory:", read_only=False) as connection:
        _build(connection, paths, keys)
        yield connection


@contextmanager
def _opened(path: Path | str, read_only: bool) -> Iterator[DuckDBPyConnection]:
    import duckdb

    try:
        connection = duckdb.connect(str(path), read_only=read_only)
    except duckdb.Error as error:
        held = "lock" in str(error).lower()  # DuckDB has no exception of its own for that
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


def _build(connection: DuckDBPyConnection, paths: Paths, only: Collection[str] | None = None) -> tuple[Damaged, ...]:
    """Fill an empty database with all trials, or only with those of some keys; returns what was left out."""
    connection.execute("SET preserve_insertion_order = false")  # all cores insert, and less memory is held
    for table in TABLES:
        columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
        connection.execute(f"CREATE TABLE {table.name} ({columns})")
        _comment(connection, "TABLE", table.name, table.meaning)
        for column in table.columns:
            _comment(connection, "COLUMN", f"{table.name}.{column.name}", column.meaning)
    damaged = [*_stage_records(connection, paths, only), *_stage_studies(connection, paths, only)]
    for table in TABLES:
        if table.source:
            _fill(connection, table, table.source)
    damaged += _fill_items(connection, paths)
    connection.execute(
        """UPDATE scores SET answer_bits = mean FROM (SELECT key, task, split, metric, avg(answer_bits) AS mean FROM items
        WHERE answer_bits IS NOT NULL GROUP BY ALL) a
        WHERE (scores.key, scores.task, scores.split, scores.metric) = (a.key, a.task, a.split, a.metric)"""
    )
    connection.execute(
        "UPDATE members SET reused = true FROM provenance p WHERE p.key = members.key AND p.study <> members.study"
    )
    texts = [[_printable(str(file.path)) for file in damaged], [_printable(file.reason) for file in damaged]]
    connection.execute("INSERT INTO damaged SELECT unnest(?), unnest(?)", texts)
    for view in VIEWS:
        connection.execute(f"CREATE VIEW {view.name} AS {view.sql}")
        _comment(connection, "VIEW", view.name, view.meaning)
    return tuple(damaged)


def _printable(text: str) -> str:
    """The text without bytes that are none, which a file's name may hold."""
    return os.fsencode(text).decode(errors="replace")


def _comment(connection: DuckDBPyConnection, kind: str, name: str, text: str) -> None:
    quoted = text.replace("'", "''")
    connection.execute(f"COMMENT ON {kind} {name} IS '{quoted}'")


def _fill(connection: DuckDBPyConnection, table: Table, source: str, values: list[Any] | None = None) -> None:
    columns = ", ".join(f"CAST({column.source} AS {column.type})" for column in table.columns)
    connection.execute(f"INSERT INTO {table.name} SELECT {columns} FROM {source}", values or [])


def _count(connection: DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(row[0]) if row else 0


def _stage_records(connection: DuckDBPyConnection, paths: Paths, only: Collection[str] | None) -> list[Damaged]:
    """Read all records that are believed into the temporary table `records` (key, r); returns the others."""
    damaged = [Damaged(path, _text(path.with_suffix(".txt")).strip()) for path in paths.quarantined()]
    places = paths.records() if only is None else [str(paths.record(key)) for key in sorted(only)]
    _stage(connection, "records", _records(places, damaged), TrialResult)
    if only is None:  # no study asks for imported runs
        _stage(connection, "foreign_records", _bundled(paths, damaged), TrialResult)
        connection.execute(
            """INSERT INTO records FROM (FROM foreign_records QUALIFY row_number() OVER (PARTITION BY key ORDER BY place) = 1)
            WHERE key NOT IN (SELECT key FROM records)"""
        )
    return damaged


def _bundled(paths: Paths, damaged: list[Damaged]) -> Iterator[_Row]:
    """The records of all bundles, by the same rules."""
    for path in paths.bundles():
        try:
            for key, raw in bundled(path):
                try:
                    yield key, str(path), raw if is_intact(key, raw) else canonical_json(current(key, raw)).encode()
                except ValueError as error:
                    damaged.append(Damaged(path, f"{path}, record {key}, is not whole ({error}): import it again"))
        except StorageError as error:
            damaged.append(Damaged(path, str(error)))


def _records(places: Iterable[str], damaged: list[Damaged]) -> Iterator[_Row]:
    """Every record as text of the current version; what Python does not believe, the database does not hold."""
    for path in places:
        key = os.path.basename(os.path.dirname(path))
        try:
            with open(path, "rb", buffering=0) as file:  # DuckDB's read_blob opens each small file several times
                raw = file.read()
            yield key, path, raw if is_intact(key, raw) else canonical_json(read_current(Path(path))).encode()
        except FileNotFoundError:  # a trial still running
            continue
        except (OSError, StorageError) as error:
            damaged.append(Damaged(Path(path), str(error)))


def _stage_studies(connection: DuckDBPyConnection, paths: Paths, only: Collection[str] | None) -> list[Damaged]:
    """Read studies' folders into the temporary tables `staged_studies` (study, spec) and `staged_members` (study, m)."""
    damaged: list[Damaged] = []
    _stage(connection, "specs", _specs(paths, damaged), None)
    _stage(connection, "lines", _members(paths, damaged, only), Member)
    connection.execute(
        """CREATE TEMP TABLE staged_studies AS SELECT key AS study, r AS spec FROM specs;
        CREATE TEMP TABLE staged_members AS SELECT key AS study, r AS m FROM lines
        QUALIFY row_number() OVER (PARTITION BY key, r.key, r.role, r.family, r.number ORDER BY place) = 1"""
    )
    return damaged


def _specs(paths: Paths, damaged: list[Damaged]) -> Iterator[_Row]:
    for study in paths.studies():
        try:
            yield study.name, str(study.spec), canonical_json(parse_json(_text(study.spec))).encode()
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            damaged.append(_cut_short(study.spec, 1))


def _members(paths: Paths, damaged: list[Damaged], only: Collection[str] | None) -> Iterator[_Row]:
    for study in paths.studies():
        lines = study.members.read_bytes().splitlines() if study.members.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                data = parse_json(line)
                member = decode(Member, data)
                if only is None or member.key in only:
                    # Python's parser takes NaN and half characters, DuckDB's does not
                    yield study.name, f"{number:09}", canonical_json(data).encode()
            except ValueError:
                damaged.append(_cut_short(study.members, number))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _cut_short(path: Path, line: int) -> Damaged:
    return Damaged(path, f"{path}, line {line}, is cut short or no JSON: run the study again")


CHUNK = 10_000
"""Files read before DuckDB parses them: bounds memory to some tens of megabytes."""
_Row = tuple[str, str, bytes]
"""The folder's name, where the JSON stands in it, and the JSON."""


def _stage(connection: DuckDBPyConnection, table: str, rows: Iterable[_Row], kind: type | None) -> None:
    """Parse rows to a table (key, place, r), in which `r` has the fields of a record class; None leaves JSON."""
    import pyarrow as pa

    types = json.dumps(structure(kind))
    parse = f"SELECT key, place, json_transform(decode(content), '{types}') AS r FROM chunk"
    names, remaining = ("key", "place", "content"), iter(rows)
    columns = pa.schema([("key", pa.string()), ("place", pa.string()), ("content", pa.binary())])
    connection.register("chunk", columns.empty_table())
    connection.execute(f"CREATE TEMP TABLE {table} AS {parse}")
    while chunk := list(islice(remaining, CHUNK)):
        connection.register("chunk", pa.table(dict(zip(names, zip(*chunk, strict=True), strict=True)), schema=columns))
        connection.execute(f"INSERT INTO {table} {parse}")
    connection.unregister("chunk")


def _fill_items(connection: DuckDBPyConnection, paths: Paths) -> list[Damaged]:
    """Item outcomes of test-split trials; all files in one go, and one by one where that fails."""
    keys = connection.execute("SELECT key FROM trials WHERE split = 'test' ORDER BY key").fetchall()
    files = [path for (key,) in keys if (path := paths.items(key)).exists()]
    table = next(table for table in TABLES if table.name == "items")
    # one damaged file fails a query over all; to ask for each alone is much slower
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
        names = [glob.escape(path.as_posix()) for path in files]  # DuckDB takes every name for a pattern
        # files of before a column was written lack it
        read = "(FROM read_parquet(?, filename = true, union_by_name = true) UNION ALL BY NAME "
        _fill(
            connection,
            table,
            read + "SELECT NULL::DOUBLE AS answer_bits, NULL::DOUBLE AS pseudo_value WHERE false)",
            [names],
        )
    except duckdb.Error as error:
        return " ".join(str(error).split())[:120]
    return None
