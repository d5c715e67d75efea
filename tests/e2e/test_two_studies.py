"""Two studies of one folder at the same time: what they share runs once, is billed once, and both reports are made."""

from concurrent.futures import ThreadPoolExecutor

import duckdb
import pytest
import yaml

from harness.records.lost_work import read_lost
from harness.records.paths import Paths
from harness.records.study_trials import read_members
from tests.e2e.conftest import lay_out

SMALL = {
    "tasks": ["tb_newfacts"],
    "off_target": ["tb_copy"],
    "search": {"sampler": "random", "limit": 20},
    "confirm": {"finalists": 2, "seeds": 2, "limit": 20},
}


@pytest.mark.thorough
def test_two_snakemakes_in_one_folder(tmp_path):
    project = lay_out(tmp_path, **SMALL, families={"lora": {"method": "lora"}, "full": {"method": "full"}})
    mine = tmp_path / "studies" / "quickstart.yaml"
    theirs = tmp_path / "studies" / "theirs.yaml"
    other = {
        "name": "theirs",
        "question": "Another one?",
        "families": {"lora": {"method": "lora"}, "frozen": {"method": "layer_freezing"}},
    }
    theirs.write_text(yaml.safe_dump({**yaml.safe_load(mine.read_text()), **other}))
    with ThreadPoolExecutor() as pool:
        for run in [
            pool.submit(project.run, "snakemake", "--config", f"study={name}") for name in ("quickstart", "theirs")
        ]:
            run.result()
    assert all((tmp_path / "reports" / f"{name}.html").exists() for name in ("quickstart", "theirs"))
    paths = Paths(tmp_path / "results")
    studies = {name: read_members(paths, name) for name in ("quickstart", "theirs")}
    keys = {name: {member.key for member in members} for name, members in studies.items()}
    shared = keys["quickstart"] & keys["theirs"]
    assert len(shared) >= 2 + 2  # the base on both splits, and LoRA's two trials
    assert not any(read_lost(paths.study(name).jobs) for name in studies)
    project.run("harness", "database")
    with duckdb.connect(str(paths.database), read_only=True) as database:
        paid = database.execute(
            "SELECT key, count(*) FROM members WHERE NOT reused GROUP BY key HAVING count(DISTINCT study) > 1"
        )
        assert paid.fetchall() == []
        ran = dict(database.execute("SELECT key, study FROM provenance").fetchall())
        both = "SELECT DISTINCT key, study FROM members WHERE reused"
        assert {(key, study) for key in shared for study in studies if ran[key] != study} == set(
            database.execute(both).fetchall()
        )
    assert set(ran) == keys["quickstart"] | keys["theirs"]
    assert not list(paths.trials.glob("*/*/claim"))
