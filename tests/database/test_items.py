"""Item outcomes as arrays: the same items in the same order in every run and in the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from harness.database.ingest import connect, ingest  # noqa: E402
from harness.database.items import DIFFERENT, MISSING, WHOLE, Outcomes, load_outcomes  # noqa: E402
from harness.records.paths import Paths  # noqa: E402
from tests.fabricate import fabricate, study_spec, write_signed  # noqa: E402

Row = dict[str, object]


def outcomes(paths: Paths) -> Outcomes:
    ingest(paths)
    with connect(paths) as connection:
        return load_outcomes(connection, "made_up")


def runs(paths: Paths, task: str) -> list[str]:
    members = map(json.loads, paths.study("made_up").members.read_text().splitlines())
    own = [m for m in members if m["role"] == "confirm" and m["task"] == task]
    return [m["key"] for m in own if m["family"] == own[0]["family"]]


def base_runs(paths: Paths, task: str) -> list[str]:
    members = map(json.loads, paths.study("made_up").members.read_text().splitlines())
    keys = [m["key"] for m in members if m["role"] == "base" and m["task"] == task]
    return [key for key in keys if paths.items(key).exists()]


def change_items(paths: Paths, key: str, change: Callable[[list[Row]], list[Row]]) -> None:
    table = pq.read_table(paths.items(key))
    schema = table.schema.append(pa.field("pseudo_value", pa.float64()))
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=schema), paths.items(key))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "results")
    fabricate(made, study_spec(tasks=1, seeds=2), items=40)
    return made


def test_runs_are_rows_and_items_keep_their_order(paths: Paths) -> None:
    keys = runs(paths, "task_0")
    change_items(paths, keys[1], lambda rows: rows[::-1])  # a file's order says nothing
    found = outcomes(paths)
    matrix = found.matrix(keys, "task_0")
    assert matrix.shape == (2, 40)
    # An item that the weaker of two fabricated runs answers, the better one answers too: only so in the same order.
    low, high = sorted(matrix, key=np.sum)
    assert np.all(low <= high)
    assert np.all(found.base(keys[0], "task_0") <= low)
    assert found.matrix(keys, "facts").shape == (2, 40)


def test_the_base_counts_once_however_often_it_was_scored(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "results")
    fabricate(paths, study_spec(tasks=3, seeds=2), items=10)  # three tasks: the base is scored on `facts` three times
    ingest(paths)
    with connect(paths) as connection:
        counts = connection.execute("SELECT task, count(*) FROM base_items GROUP BY task ORDER BY task").fetchall()
    assert counts == [(task, 10) for task in ("facts", "stories_perplexity", "task_0", "task_1", "task_2")]


def test_what_has_no_item_outcomes_says_why(paths: Paths) -> None:
    first, second = runs(paths, "task_0")
    found = outcomes(paths)
    assert found.gap([first, second], "task_0") is None
    assert found.gap([first, second], "another") == MISSING
    change_items(paths, first, lambda rows: [row for row in rows if row["task"] != "task_0"])
    assert outcomes(paths).gap([first, second], "task_0") == MISSING


def test_a_mean_that_is_not_the_score_is_of_no_item(paths: Paths) -> None:
    first, second = runs(paths, "task_0")
    change_items(paths, first, lambda rows: [row | {"value": 0.5} for row in rows])
    found = outcomes(paths)
    assert found.gap([first, second], "task_0") == WHOLE
    assert found.matrix([first, second], "task_0") is None


def test_of_a_metric_of_all_items_their_pseudo_values_are_taken(paths: Paths) -> None:
    first, second = runs(paths, "task_0")
    values = {key: outcomes(paths).matrix([key], "task_0")[0] for key in (first, second)}
    bases = base_runs(paths, "task_0")
    for key in (first, second, *bases):
        change_items(paths, key, lambda rows: [row | {"pseudo_value": row["value"], "value": None} for row in rows])
    found = outcomes(paths)
    assert np.array_equal(np.sort(found.matrix([first, second], "task_0")[0]), np.sort(values[first]))
    assert found.base(first, "task_0") is not None
    # one of another number of items stands for something else
    for key in bases:
        path = paths.record(key)
        record = json.loads(path.read_text())
        record["scores"][0]["n"] += 1
        write_signed(path, record)
    assert outcomes(paths).base(first, "task_0") is None


def test_other_items_are_never_joined(paths: Paths) -> None:
    first, second = runs(paths, "task_0")
    change_items(paths, first, lambda rows: [row | {"doc_hash": f"{row['doc_hash']}'"} for row in rows])
    found = outcomes(paths)
    assert found.gap([first, second], "task_0") == DIFFERENT
    assert found.base(first, "task_0") is None
