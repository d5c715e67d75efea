from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import optuna
import pandas
import pytest

from harness.database.export import export_optuna, export_tables
from harness.database.ingest import connect, ingest
from harness.database.schema import TABLES
from harness.database.views import VIEWS
from harness.errors import SpecError, StorageError, UsageError
from harness.records.paths import Paths
from harness.study.family import resolved_families
from tests.fabricate import Fabricated, fabricate, study_spec


@pytest.fixture
def made(paths: Paths) -> Fabricated:
    spec = study_spec(tasks=2)
    made = fabricate(paths, spec, families=resolved_families(spec), items=2)
    ingest(paths)
    return made


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_tables_say_what_the_database_says(paths: Paths, made: Fabricated, tmp_path: Path, file_format: str) -> None:
    written = export_tables(paths, tmp_path / "it's here", file_format)
    assert {path.stem for path in written} == {table.name for table in (*TABLES, *VIEWS)}
    read = pandas.read_csv if file_format == "csv" else pandas.read_parquet
    frame = read(next(path for path in written if path.stem == "scores"))
    with connect(paths) as database:
        total, count = database.execute("SELECT sum(value), count(*) FROM scores").fetchall()[0]
    assert (frame["value"].sum(), len(frame)) == (pytest.approx(total), count)
    assert export_tables(paths, tmp_path / "it's here", file_format) == written  # again replaces


def test_a_spreadsheet_finds_no_formula_in_a_csv(paths: Paths, tmp_path: Path) -> None:
    """Texts that people write (a task's name, a reason) and that a spreadsheet would run; numbers stay numbers."""
    ingest(paths)
    texts = ["=1+1", "+cmd", "-2+3", "@sum", "\tx", "-0.5", "1e-3", "fine", "it's = fine", None]
    with duckdb.connect(str(paths.database)) as database:
        rows = [(f"k{number}", text) for number, text in enumerate(texts)]
        database.executemany("INSERT INTO trials (key, reason) VALUES (?, ?)", rows)
    [path] = [one for one in export_tables(paths, tmp_path / "out", "csv") if one.stem == "trials"]
    with path.open(newline="") as file:
        found = {row["key"]: row["reason"] for row in csv.DictReader(file)}
    wanted = ["'=1+1", "'+cmd", "'-2+3", "'@sum", "'\tx", "-0.5", "1e-3", "fine", "it's = fine", ""]
    assert found == {f"k{number}": text for number, text in enumerate(wanted)}


def test_optuna_has_the_same_trials_and_values(paths: Paths, made: Fabricated, tmp_path: Path) -> None:
    path = export_optuna(paths, "made_up", tmp_path / "storage.db")
    storage = f"sqlite:///{path}"
    cells = {f"made_up/tiny-1m/{task}/{family}" for task in made.study.tasks for family in made.families}
    assert set(optuna.get_all_study_names(storage)) == cells
    records = {result.config.key: result for result in made.results}
    seen = 0
    for cell in cells:
        study, family = optuna.load_study(study_name=cell, storage=storage), cell.split("/")[-1]
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
        for trial, member in zip(
            study.trials,
            [m for m in made.members if (m["role"], m["task"], m["family"]) == ("search", cell.split("/")[2], family)],
            strict=True,
        ):
            result = records[str(member["key"])]
            assert trial.user_attrs["key"] == member["key"]
            assert trial.user_attrs["seconds"] == pytest.approx(result.cost.total_s)
            assert trial.user_attrs["solo_seconds"] == pytest.approx(result.cost.solo_s)
            assert trial.params == member["params"]
            assert set(trial.distributions) == set(made.families[family].space)
            assert trial.value == (result.target.value if result.target else None)
            assert trial.state.name == ("COMPLETE" if result.target else "FAIL")
            if result.target:
                assert trial.intermediate_values == {point.step: point.score for point in result.curve}
                assert trial.user_attrs["forgetting"] == pytest.approx(0.9 - result.scores[1].value)
            seen += 1
    assert seen == 24
    assert [p.name for p in tmp_path.glob(".storage*")] == []


def test_rungs_are_one_trial_each_and_pruned_below_the_top(paths: Paths, made: Fabricated, tmp_path: Path) -> None:
    path = paths.study("made_up").members
    lines = path.read_text().splitlines()
    cell = [
        i for i, line in enumerate(lines) if '"search"' in line and '"task_0"' in line and '"family": "lora"' in line
    ]
    # number 0 ran to 1/3 only; number 1 to 1/3 (record of number 2) and then to the top
    lines[cell[0]] = lines[cell[0]].replace('"reused"', '"fidelity": 0.3333, "reused"')
    lines[cell[2]] = (
        lines[cell[2]].replace('"number": 2', '"number": 1').replace('"reused"', '"fidelity": 0.3333, "reused"')
    )
    path.write_text("\n".join(lines) + "\n")
    ingest(paths)
    export_optuna(paths, "made_up", tmp_path / "storage.db")
    study = optuna.load_study(study_name="made_up/tiny-1m/task_0/lora", storage=f"sqlite:///{tmp_path / 'storage.db'}")
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE", "COMPLETE"]


def test_mistakes_are_one_sentence(paths: Paths, made: Fabricated, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'made_up'"):
        export_optuna(paths, "madeup", tmp_path / "x.db")
    with pytest.raises(UsageError, match="csv, parquet"):
        export_tables(paths, tmp_path, "xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="name another"):
        export_tables(paths, tmp_path / "file", "csv")
    with pytest.raises(StorageError, match="harness database"):
        export_tables(Paths(tmp_path / "empty"), tmp_path / "out", "csv")


def test_values_outside_todays_space_are_exported(paths: Paths, made: Fabricated, tmp_path: Path) -> None:
    """A learning rate that the plug-in no longer offers, and a whole number that became a word."""
    path = paths.study("made_up").members
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    cell = [m for m in lines if (m["role"], m["task"], m["family"]) == ("search", "task_0", "lora")]
    cell[0]["params"] |= {"learning_rate": 50.0, "rank": "auto"}
    cell[1]["params"] |= {"learning_rate": 0.0}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ingest(paths)
    export_optuna(paths, "made_up", tmp_path / "storage.db")
    study = optuna.load_study(study_name="made_up/tiny-1m/task_0/lora", storage=f"sqlite:///{tmp_path / 'storage.db'}")
    assert [trial.params for trial in study.trials] == [member["params"] for member in cell]


def test_a_folder_is_no_storage(paths: Paths, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must have a file as its target"):
        export_optuna(paths, "made_up", tmp_path)


def test_only_the_optuna_export_imports_optuna() -> None:
    code = "import sys, harness.database.export; print('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
