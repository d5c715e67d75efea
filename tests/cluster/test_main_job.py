"""The main job on a real Slurm: the literal `snakemake --profile slurm`, and a family that never works."""

import json
from pathlib import Path

import pytest
import yaml

from harness.files import read_lines
from harness.records.paths import Paths
from harness.records.results import iterate_results
from tests.cluster.test_faults import scontrol
from tests.e2e.conftest import lay_out

SITE = {"runner": "slurm", "runner_options": {"workers": 2, "partition": "main"}}
SMALL = {
    "tasks": ["tb_newfacts"],
    "off_target": ["tb_copy"],
    "families": {"full": {"method": "full"}, "lora": {"method": "lora"}},
    "confirm": {"finalists": 1, "seeds": 2, "limit": 20},
}


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_the_same_study_runs_on_a_cluster_with_no_other_edit(tmp_path: Path) -> None:
    project = lay_out(tmp_path, **SMALL)
    (tmp_path / "slurm" / "site.yaml").write_text(yaml.safe_dump(SITE))
    project.run("snakemake", "--profile", "slurm")
    assert (tmp_path / "reports" / "quickstart.html").exists()
    results = [result for _, result in iterate_results(Paths(tmp_path / "results"))]
    # the base on two splits, two families x two trials, one finalist x two seeds
    assert [str(result.status) for result in results] == ["complete"] * (2 + 4 + 2)
    jobs = [
        line for line in read_lines(tmp_path / "results/studies/quickstart/jobs.jsonl") if line["event"] == "started"
    ]
    assert {line["job"]["runner"] for line in jobs} == {"slurm"}, json.dumps(jobs)
    for line in jobs:  # by forecast: of a worker with a model of a few million parameters, and seconds of work
        told = scontrol(line["job"]["job"])
        assert told["TimeLimit"] == "00:30:00"
        assert told["MinMemoryNode"] in ("1G", "1.50G", "2000M")
