"""A project folder that version 1 left is read, reported and continued, and no trial that it recorded runs again.

Everything is asked by command, as a user does, so that the test holds for every arrangement of the code. Expected values
come from the folder's own files.
"""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Project

FOLDER = Path(__file__).parents[1] / "data" / "results_v1"
RECORDS = {path.parent.name: json.loads(path.read_text()) for path in FOLDER.glob("results/trials/*/*/record.json")}
STUDIES = ("finished", "gave_up", "interrupted")
MISSING = {"0d7de53affe210491e35", "35fda122559b58fb3e5b", "5355efaa58628d4a65c3"}
"""The confirm trials of `interrupted` without a record: version 1 gave them these keys where it was not killed."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy whose records stay as they are, with its database, which some of the commands read."""
    made = Project(shutil.copytree(FOLDER, tmp_path_factory.mktemp("version_1") / "project"))
    made.harness("database")
    return made


@pytest.fixture
def fresh(tmp_path):
    """A copy in which trials may run."""
    return Project(shutil.copytree(FOLDER, tmp_path / "project"))


def members(folder, study):
    lines = (folder / "results" / "studies" / study / "members.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def contents(folder):
    """What a continued study must not touch: records, item-level outcomes, and the studies' own lists of trials."""
    paths = [*folder.glob("results/trials/*/*/*"), *folder.glob("results/studies/*/[em]*.jsonl")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def table(project, name):
    return list(csv.DictReader((project.folder / "tables" / f"{name}.csv").read_text().splitlines()))


def ran_now(done):
    return int(re.search(r"\((\d+) ran now", done.stdout)[1])


def continued(project, step, study, code=0):
    return project.harness(step, study, "--runner", "inline", "--quiet", code=code)


def test_the_folder_holds_what_the_tests_are_about():
    """Else a test below could pass on nothing."""
    assert {record["schema_version"] for record in RECORDS.values()} == {1}
    assert Counter(record["status"] for record in RECORDS.values()) == {"complete": 39, "crashed": 3}
    assert len({len(record["config"]["pipeline"]["stages"]) for record in RECORDS.values()}) == 2
    keys = {study: {member["key"] for member in members(FOLDER, study)} for study in STUDIES}
    assert set().union(*keys.values()) - set(RECORDS) == {"5355efaa58628d4a65c3"}
    assert keys["finished"] & keys["gave_up"]


def test_the_database_holds_every_record(project):
    summary = json.loads(project.harness("database", "--json").stdout)
    lines = sum(len(members(FOLDER, study)) for study in STUDIES)
    assert (summary["trials"], summary["members"], summary["studies"]) == (len(RECORDS), lines, len(STUDIES))
    assert summary["damaged"] == []
    project.harness("export", "tables", "--format", "csv")
    statuses = {row["key"]: row["status"] for row in table(project, "trials")}
    assert statuses == {key: record["status"] for key, record in RECORDS.items()}
    scores = {(row["key"], row["task"]): float(row["value"]) for row in table(project, "scores")}
    assert scores == {(key, s["task"]): s["value"] for key, record in RECORDS.items() for s in record["scores"]}


def test_the_report_names_every_family(project):
    study = project.folder / "studies" / "finished.yaml"
    page = (project.folder / project.harness("report", str(study)).stdout.strip()).read_text()
    assert [family for family in yaml.safe_load(study.read_text())["families"] if family not in page] == []


def test_the_status_is_that_of_the_files(project):
    for row in json.loads(project.harness("status", "--json").stdout):
        keys = {member["key"] for member in members(FOLDER, row["study"])}
        statuses = Counter(RECORDS[key]["status"] for key in keys & set(RECORDS))
        assert row["done"] == statuses.pop("complete")
        assert row["failed"] == statuses
        assert row["running"] == len(keys - set(RECORDS))


def test_a_recommendation_rests_on_the_records(project):
    found = json.loads(project.harness("recommend", "--task", "tb_sentiment", "--model", "tiny-1m", "--json").stdout)
    ranked = found["advice"]["recommendations"]
    assert {place["family"] for place in ranked} == {"full", "mixed", "two_stages"}
    assert {evidence["key"] for place in ranked for evidence in place["evidence"]} <= set(RECORDS)


def test_a_finished_study_runs_nothing_again(fresh):
    before = contents(fresh.folder)
    # Every trial of the family `fused` crashed, which the exit code of the search says.
    for step, code in (("base", 0), ("search", 4), ("confirm", 0)):
        assert ran_now(continued(fresh, step, "finished", code)) == 0
    search = continued(fresh, "search", "gave_up")
    assert ran_now(search) == 0
    assert "mixed: gave up after 4 scored trials" in search.stdout
    assert contents(fresh.folder) == before


def test_an_interrupted_study_runs_the_trials_that_are_missing_and_no_other(fresh):
    before = contents(fresh.folder)
    assert ran_now(continued(fresh, "search", "interrupted")) == 0
    assert contents(fresh.folder) == before
    assert ran_now(continued(fresh, "confirm", "interrupted")) == len(MISSING)
    after = contents(fresh.folder)
    assert [name for name in before if after[name] != before[name]] == ["results/studies/interrupted/members.jsonl"]
    records = {path.split("/")[3]: json.loads(after[path]) for path in after if path.endswith("record.json")}
    assert records.keys() - RECORDS.keys() == MISSING
    assert {records[key]["status"] for key in MISSING} == {"complete"}
    confirmed = [member["key"] for member in members(fresh.folder, "interrupted") if member["role"] == "confirm"]
    assert len(confirmed) == 4
    assert set(confirmed) > MISSING
