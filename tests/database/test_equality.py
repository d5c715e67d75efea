"""Two databases are equal where they hold the same rows, whatever their order and whenever trials ran."""

import duckdb
import pytest

from harness.database.equality import certify


def database(*rows, other=()):
    connection = duckdb.connect()
    connection.execute("CREATE TABLE trials (key VARCHAR, started_at VARCHAR, score DOUBLE)")
    connection.execute("CREATE TABLE studies (name VARCHAR)")
    connection.execute("CREATE VIEW seen AS SELECT * FROM trials")
    for row in rows:
        connection.execute("INSERT INTO trials VALUES (?, ?, ?)", row)
    for name in other:
        connection.execute("INSERT INTO studies VALUES (?)", [name])
    return connection


ONE = (("a", "1", 0.5), ("b", "2", None))


@pytest.mark.parametrize(
    ("rows", "other", "equal"),
    [
        ((("b", "9", None), ("a", "8", 0.5)), (), True),
        ((("a", "1", 0.5),), (), False),
        ((("a", "1", 0.5), ("a", "1", 0.5), ("b", "2", None)), (), False),
        ((("a", "1", 0.5), ("b", "2", 0.0)), (), False),
        (ONE, ["more"], False),
    ],
)
def test_rows_count_and_neither_their_order_nor_when(rows, other, equal):
    with database(*ONE) as ours, database(*rows, other=other) as theirs:
        certificate = certify(ours, theirs)
    assert certificate.equal is equal
    tables = {table.table: table for table in certificate.tables}
    assert tables.keys() == {"trials", "studies"}
    assert tables["trials"].columns == ("key", "score")
    assert tables["trials"].rows[0] == 2
