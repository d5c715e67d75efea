"""One bad model does not end a study: it is left out with its reason, and the rest runs."""

import json
import shutil

import pytest
import yaml

from harness.driver.experiment import Site
from harness.driver.phases import run_phase
from harness.driver.plan import plan_study
from harness.driver.resolve import resolve
from harness.errors import SpecError
from harness.records.paths import Paths
from harness.report.study_files import StudyFile
from harness.study.load import load_study


@pytest.fixture
def models(world, tmp_path):
    """A good model, one whose config fits no weights, one cut off, and one that is not there."""
    good, unfit, short = (shutil.copytree(world.llama, tmp_path / name) for name in ("good", "unfit", "short"))
    config = unfit / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 96}))
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    return [str(path) for path in (good, unfit, short, tmp_path / "nowhere")]


def study(tmp_path, models):
    path = tmp_path / "many.yaml"
    content = {
        "name": "many",
        "question": "which model?",
        "base_models": models,
        "tasks": ["colour"],
        "families": {"lora": {"method": "lora"}},
        "budget": {"trials": 1, "steps": 2},
        "confirm": {"finalists": 1, "seeds": 2},
    }
    path.write_text(yaml.safe_dump(content))
    return load_study(path)


def test_bad_models_are_left_out_with_their_reasons_and_the_rest_runs(models, world, tmp_path):
    site = Site(
        paths=Paths(tmp_path / "results", tmp_path / "reports"),
        task_folders=(world.tasks,),
        runner="inline",
        device="cpu",
        display=False,
    )
    spec = study(tmp_path, models)
    planned = plan_study(resolve(spec, site))
    assert list(planned.refused) == models[1:]
    assert planned.exit_code == 4
    for name in models[1:]:
        assert sum(name in line for line in planned.text().splitlines() if line.startswith("left out: ")) == 1
    summary = run_phase("base", spec, site)
    assert (summary.trials, summary.failed, summary.exit_code) == (2, 0, 4)  # validation and test
    assert len(summary.without_score) == 3
    recorded = StudyFile.of(json.loads(site.paths.study("many").spec.read_text()))
    assert list(recorded.refused) == models[1:]


def test_a_study_of_bad_models_only_is_refused(models, world, tmp_path):
    site = Site(paths=Paths(tmp_path / "results", tmp_path / "reports"), task_folders=(world.tasks,), display=False)
    with pytest.raises(SpecError, match=r"cut off.*; .*is not a folder"):
        resolve(study(tmp_path, models[2:]), site)
