from __future__ import annotations

from dataclasses import dataclass

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.database.rows import grouped, read_rows, stages_of


@dataclass(frozen=True, kw_only=True)
class Pair:
    left: int
    right: str | None


def test_columns_find_their_fields_by_name_in_any_order() -> None:
    with duckdb.connect() as connection:
        rows = read_rows(connection, "SELECT ? AS right, 1 AS left UNION ALL SELECT NULL, 2", ["a"], Pair)
    assert rows == [Pair(left=1, right="a"), Pair(left=2, right=None)]


@pytest.mark.parametrize("sql", ["SELECT 1 AS left", "SELECT 1 AS left, 'a' AS right, 2 AS middle"])
def test_a_query_that_does_not_fit_the_class_is_named(sql: str) -> None:
    with duckdb.connect() as connection, pytest.raises(TypeError, match=r"fields of Pair, .*(right|middle)"):
        read_rows(connection, sql, [], Pair)


def test_a_stage_written_before_a_field_existed_has_its_default() -> None:
    (stage,) = stages_of('[{"method": "lora", "objective": null, "params": {"rank": 8}, "data": null}]')
    assert (stage.method, stage.objective, stage.params, stage.data) == ("lora", "sft", {"rank": 8}, None)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers())))
def test_groups_rise_and_keep_their_rows_in_order(rows: list[tuple[str, int]]) -> None:
    groups = grouped(rows, lambda row: row[0])
    assert list(groups) == sorted({key for key, _ in rows})
    assert all(own == [row for row in rows if row[0] == key] for key, own in groups.items())
