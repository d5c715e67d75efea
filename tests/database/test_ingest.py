"""The database: whatever state the records are in, it holds every whole one, and says what it left out."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from harness.database.ingest import connect, ingest
from harness.database.schema import TABLES, schema_text, structure
from harness.database.views import VIEWS
from harness.errors import StorageError
from harness.records.codec import Record, fingerprint
from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.space import Scalar
from tests.fabricate import Fabricated, fabricate, study_spec, write_signed


def rows(paths: Paths, sql: str) -> list[tuple]:
    with connect(paths) as database:
        return database.execute(sql).fetchall()


def dump(paths: Paths) -> dict[str, list[tuple]]:
    return {t.name: sorted(rows(paths, f"SELECT * FROM {t.name}"), key=repr) for t in TABLES}


@pytest.fixture
def made(paths: Paths) -> Fabricated:
    return fabricate(paths, items=5)


def test_every_record_and_every_part_of_it_arrives(paths: Paths, made: Fabricated) -> None:
    summary = ingest(paths)
    assert (summary.trials, summary.members, summary.studies, summary.damaged) == (60, 60, 1, ())
    assert rows(paths, "SELECT count(*) FROM scores") == [(sum(len(r.scores) for r in made.results),)]
    assert rows(paths, "SELECT count(*) FROM curves") == [(sum(len(r.curve) for r in made.results),)]
    tested = [r for r in made.results if r.config.evaluation.split == "test" and r.scores]
    assert rows(paths, "SELECT count(*) FROM items") == [(len(tested) * 3 * 5,)]
    result = next(r for r in made.results if r.config.pipeline.stages[0].method == "lora" and r.target)
    [(params, seconds, value, started)] = rows(
        paths,
        "SELECT params, total_s, value, started_at::VARCHAR FROM trials JOIN costs USING (key) JOIN scores USING (key) "
        f"JOIN provenance USING (key) WHERE key = '{result.config.key}' AND is_target",
    )
    assert json.loads(params) == [dict(result.config.pipeline.stages[0].params)]
    assert seconds == pytest.approx(result.cost.total_s)
    assert result.target
    assert (value, started) == (result.target.value, "2026-11-22 10:00:00")


def test_ingesting_twice_and_from_nothing_gives_the_same(paths: Paths, made: Fabricated) -> None:
    ingest(paths)
    first = dump(paths)
    ingest(paths)
    assert dump(paths) == first
    paths.database.unlink()
    ingest(paths)
    assert dump(paths) == first
    assert [p.name for p in paths.results.iterdir() if p.name.startswith(".harness.duckdb.new")] == []


def test_new_records_arrive_and_deleted_ones_leave(paths: Paths) -> None:
    fabricate(paths, study_spec("one", tasks=1))
    ingest(paths)
    made = fabricate(paths, study_spec("two", tasks=2))
    shutil.rmtree(paths.study("one").folder)
    ingest(paths)
    assert rows(paths, "SELECT DISTINCT study FROM members") == [("two",)]
    assert rows(paths, "SELECT count(*) FROM trials") == [(len(made.results),)]  # task_0's trials are shared


def test_a_database_that_changed_since_is_said_in_one_sentence(paths: Paths, made: Fabricated) -> None:
    ingest(paths)
    raw = paths.database.read_bytes()
    paths.database.write_bytes(raw[: len(raw) // 4] + bytes(len(raw) // 2) + raw[len(raw) // 4 + len(raw) // 2 :])
    with pytest.raises(StorageError, match="run 'harness database'"):
        dump(paths)


def test_nothing_there_gives_an_empty_database(paths: Paths) -> None:
    assert ingest(paths).trials == 0
    for table in (*TABLES, *VIEWS):
        assert rows(paths, f"SELECT * FROM {table.name}") == []


DAMAGE = {
    "cut short by a full disk": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not UTF-8": lambda text: b"\xff\xfe" + text.encode(),
    "a list": lambda text: "[1]",
    "of a newer version": lambda text: text.replace('"schema_version":2', '"schema_version":99'),
    "without a task": lambda text: text.replace('"task":{', '"job":{'),
    "with words for numbers": lambda text: text.replace('"steps":60', '"steps":"sixty"'),
    "with an unknown status": lambda text: text.replace('"status":"complete"', '"status":"fine"'),
    "with a score that is no number": lambda text: text.replace('"value":0', '"value":null,"was":0', 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_is_named_and_the_rest_is_kept(paths: Paths, made: Fabricated, damage: str) -> None:
    victim = next(r for r in made.results if r.config.steps and r.target)
    path = paths.record(victim.config.key)
    broken = DAMAGE[damage](path.read_text())
    assert broken != path.read_text()
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    summary = ingest(paths)
    assert summary.trials == 59
    [damaged] = summary.damaged
    assert damaged.path == path
    assert ":" in damaged.reason
    assert rows(paths, "SELECT path FROM damaged") == [(str(path),)]


def test_damaged_items_and_member_lines_are_named_too(paths: Paths, made: Fabricated) -> None:
    victim = next(r for r in made.results if r.config.evaluation.split == "test")
    paths.items(victim.config.key).write_bytes(b"PAR1 torn")
    members = paths.study("made_up").members
    members.write_text(members.read_text()[:-40])
    summary = ingest(paths)
    assert (summary.trials, summary.members) == (60, 59)
    assert {d.path.name for d in summary.damaged} == {"items.parquet", "members.jsonl"}
    assert rows(paths, f"SELECT count(*) FROM items WHERE key = '{victim.config.key}'") == [(0,)]
    assert rows(paths, "SELECT count(DISTINCT key) > 5 FROM items") == [(True,)]


def test_a_build_that_fails_leaves_the_old_database_and_no_half_of_a_new_one(paths, made, monkeypatch) -> None:
    ingest(paths)
    before = paths.database.read_bytes()
    monkeypatch.setattr("harness.database.ingest.VIEWS", [SimpleNamespace(name="x", sql="no SQL", meaning="")])
    with pytest.raises(Exception, match="syntax"):
        ingest(paths)
    assert paths.database.read_bytes() == before
    assert [path for path in paths.results.iterdir() if ".new" in path.name] == []


def test_a_trial_that_stands_twice_for_one_reason_counts_once_and_for_two_reasons_twice(made, paths):
    members = paths.study("made_up").members
    line = members.read_text().splitlines()[-1]
    for changes in ({}, {"number": 77}, {"family": "other"}):
        with members.open("a") as file:
            file.write(json.dumps(json.loads(line) | changes) + "\n")
    assert ingest(paths).members == 60 + 2


def test_a_trial_still_running_is_not_damage(paths: Paths, made: Fabricated) -> None:
    (paths.trials / "ab" / ("ab" * 10) / "checkpoint").mkdir(parents=True)
    assert ingest(paths).damaged == ()


def test_folders_may_be_called_anything(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "runs [old]* 'x'" / "results")
    made = fabricate(paths, study_spec(tasks=1), items=2)
    assert ingest(paths).trials == len(made.results)
    assert rows(paths, "SELECT count(*) > 0 FROM items") == [(True,)]


def test_params_of_any_kind_stay_json(paths: Paths, made: Fabricated) -> None:
    record = json.loads(paths.record(made.results[2].config.key).read_text())
    params = {"a": 1e-7, "b": True, "c": "x'y", "d": 'x"y'}
    record["config"]["pipeline"]["stages"][0]["params"] = params
    write_signed(paths.record(fingerprint(record["config"])), record)
    assert ingest(paths).damaged == ()
    [(kept,)] = rows(paths, "SELECT params->'$[0]' FROM trials WHERE params->>'$[0].c' IS NOT NULL")
    assert json.loads(kept) == params


def test_leaderboard_has_confirmed_results_only_with_hand_computed_numbers(paths: Paths, made: Fabricated) -> None:
    ingest(paths)
    board = rows(paths, "SELECT task, family, mean, seeds, stderr, gain, rank FROM leaderboard")
    assert len(board) == 6  # 3 tasks x 2 finalists
    for task, family, mean, seeds, stderr, gain, rank in board:
        keys = [m["key"] for m in made.members if (m["role"], m["task"], m["family"]) == ("confirm", task, family)]
        values = [r.target.value for r in made.results if r.config.key in keys and r.target]
        assert mean == pytest.approx(statistics.mean(values))
        assert stderr == pytest.approx(statistics.stdev(values) / 3**0.5)
        [base] = [
            r
            for r in made.results
            if r.config.steps == 0 and r.config.evaluation.split == "test" and r.config.task.name == task
        ]
        assert gain == pytest.approx(statistics.mean(values) - base.target.value)
        rivals = [other[2] for other in board if other[0] == task]
        assert (seeds, rank) == (3, 1 + sum(rival > mean for rival in rivals))


def test_forgetting_needs_the_same_split_and_comparability(paths: Paths, made: Fabricated) -> None:
    ingest(paths)
    tuned = [r for r in made.results if r.config.steps and r.scores]
    assert rows(paths, "SELECT count(*) FROM forgetting") == [(2 * len(tuned),)]
    result = tuned[0]
    [(facts,), (perplexity,)] = rows(
        paths, f"SELECT forgetting FROM forgetting WHERE key = '{result.config.key}' ORDER BY task"
    )
    assert facts == pytest.approx(0.9 - result.scores[1].value)
    assert perplexity == pytest.approx(result.scores[2].value - 5.0)  # a rise of a loss is a loss of knowledge
    [(worst, mean, task)] = rows(
        paths, f"SELECT worst, mean, worst_task FROM worst_forgetting WHERE key = '{result.config.key}'"
    )
    less_likely = 1 - 5.0 / result.scores[2].value  # each token, by a share of its probability
    assert (worst, mean, task) == (pytest.approx(facts), pytest.approx((facts + less_likely) / 2), "facts")
    path = paths.record(result.config.key)
    write_signed(path, json.loads(path.read_text().replace(result.scores[1].comparability, "another_tokenizer")))
    ingest(paths)
    kept = rows(paths, f"SELECT task FROM forgetting WHERE key = '{result.config.key}'")
    assert kept == [("stories_perplexity",)]


def test_frontier_keeps_what_nothing_dominates(paths: Paths, made: Fabricated) -> None:
    ingest(paths)
    points = rows(paths, "SELECT task, family, mean, forgetting, seconds FROM leaderboard")
    kept = set(rows(paths, "SELECT task, family, mean, forgetting, seconds FROM frontier"))
    for a in points:
        beaten = any(b != a and b[0] == a[0] and b[2] >= a[2] and b[3] <= a[3] and b[4] <= a[4] for b in points)
        assert (a in kept) is not beaten
    assert kept


def test_what_a_trial_would_cost_alone_stands_beside_its_share(paths: Paths, made: Fabricated) -> None:
    tuned = [r.config.key for r in made.results if r.config.steps][:3]
    costs = (
        # 1 + 12 + 3 = 16 s and 0.4; alone 1 + 30 + 3 = 34 s, and 0.4 x 34 / 16 = 0.85
        {"solo_equivalent_s": 30.0, "trained_with": 4, "utilisation": 0.2},
        {"solo_equivalent_s": None, "trained_with": 1, "utilisation": None},
        {},  # written before trials were trained together
    )
    for key, cost in zip(tuned, costs, strict=True):
        record = json.loads(paths.record(key).read_text())
        for name in ("solo_equivalent_s", "trained_with", "utilisation"):
            del record["cost"][name]
        record["cost"] |= {"seconds": {"load": 1.0, "train": 12.0, "evaluate": 3.0}, "money": 0.4, **cost}
        record["provenance"]["effective"] = {"alone": "it is large"} if key == tuned[1] else {"stages": []}
        write_signed(paths.record(key), record)
    assert ingest(paths).damaged == ()
    columns = "total_s, train_s, solo_train_s, solo_s, solo_money, trained_with, utilisation, alone"
    found = [
        rows(paths, f"SELECT {columns} FROM costs JOIN provenance USING (key) WHERE key = '{k}'")[0] for k in tuned
    ]
    assert found == [
        (16.0, 12.0, 30.0, 34.0, pytest.approx(0.85), 4, 0.2, None),
        (16.0, 12.0, 12.0, 16.0, pytest.approx(0.4), 1, None, "it is large"),
        (16.0, 12.0, 12.0, 16.0, pytest.approx(0.4), 1, None, None),
    ]


def test_unmeasured_forgetting_dominates_nothing(paths: Paths, made: Fabricated) -> None:
    """The faster and better one of two has no off-target score, so it may have forgotten everything."""
    confirmed = [m for m in made.members if (m["role"], m["task"]) == ("confirm", "task_0")]
    blind = str(confirmed[0]["family"])
    for member in confirmed:
        path = paths.record(str(member["key"]))
        record = json.loads(path.read_text())
        is_blind = member["family"] == blind
        record["scores"][0]["value"] = 0.99 if is_blind else 0.5
        record["scores"] = record["scores"][:1] if is_blind else record["scores"]
        record["cost"]["seconds"] = {"train": 1.0 if is_blind else 9.0}
        write_signed(path, record)
    ingest(paths)
    assert len(rows(paths, "SELECT family FROM frontier WHERE task = 'task_0'")) == 2


def test_every_table_and_column_says_what_it_is(paths: Paths) -> None:
    ingest(paths)
    bare = rows(paths, "SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NULL AND table_name IN "
                f"{tuple(t.name for t in TABLES)}")  # fmt: skip
    assert bare == []
    assert rows(paths, "SELECT view_name FROM duckdb_views() WHERE NOT internal AND comment IS NULL") == []
    assert "frontier (view):" in schema_text()


def test_no_database_yet_is_one_sentence_with_the_remedy(paths: Paths) -> None:
    with pytest.raises(StorageError, match="run 'harness database' first"), connect(paths):
        pass


HOLD = "import sys, time, duckdb; c = duckdb.connect(sys.argv[1]); print('held', flush=True); time.sleep(60)"


def test_another_process_that_has_it_open_is_one_sentence(paths: Paths) -> None:
    ingest(paths)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(paths.database)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(StorageError, match="another process has it open"), connect(paths):
                pass
        finally:
            other.kill()
    ingest(paths)  # a killed holder leaves nothing to clean up


def test_a_file_that_is_no_database_names_the_remedy(paths: Paths) -> None:
    paths.results.mkdir(parents=True)
    paths.database.write_text("not a database, but long enough to have a header " * 100)
    with pytest.raises(StorageError, match="delete it"), connect(paths):
        pass
    assert ingest(paths).trials == 0


@pytest.mark.parametrize("change", ["ALTER TABLE provenance DROP COLUMN plugins", "DROP VIEW worst_forgetting"])
def test_a_database_of_another_version_is_one_sentence(paths: Paths, change: str) -> None:
    ingest(paths)
    with connect(paths, read_only=False) as database:
        database.execute(change)
    with pytest.raises(StorageError, match=r"must be of this version of harness, but is not .* to build it anew$"):
        rows(paths, "SELECT plugins FROM provenance, worst_forgetting")
    ingest(paths)
    assert rows(paths, "SELECT plugins FROM provenance, worst_forgetting") == []


def test_killed_while_building_leaves_the_old_database(paths: Paths, made: Fabricated) -> None:
    ingest(paths)
    code = (
        "import os, sys; from pathlib import Path; import harness.database.ingest as s; from harness.records.paths import Paths\n"
        "s._fill_items = lambda *a: os.kill(os.getpid(), 9)\ns.ingest(Paths(Path(sys.argv[1])))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(paths.results)], check=False)
    assert killed.returncode == -9
    assert rows(paths, "SELECT count(*) FROM trials") == [(60,)]
    assert ingest(paths).trials == 60


def test_of_a_thousand_records_none_is_lost(paths: Paths) -> None:
    made = fabricate(paths, study_spec(tasks=25, trials=10))
    assert ingest(paths).trials == len(made.results) == 950


@dataclass(frozen=True, kw_only=True)
class Part(Record):
    flag: bool
    words: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Whole(Record):
    status: TrialStatus
    role: Literal["a", "b"]
    count: int | None
    parts: tuple[Part, ...]
    seconds: Mapping[str, float]
    params: Mapping[str, Scalar]
    anything: Any = None


def test_types_of_the_database_are_those_of_the_record_class() -> None:
    assert structure(Whole) == {
        "status": "VARCHAR",
        "role": "VARCHAR",
        "count": "BIGINT",
        "parts": [{"flag": "BOOLEAN", "words": ["VARCHAR"]}],
        "seconds": "MAP(VARCHAR, DOUBLE)",
        "params": "JSON",
        "anything": "JSON",
    }


def test_nothing_but_results_goes_to_stdout(paths: Paths, capfd: pytest.CaptureFixture[str]) -> None:
    ingest(paths)
    with connect(paths) as database:
        assert database.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(False,)]
    assert capfd.readouterr().out == ""
