"""What does not fit the device of a trial is refused before anything is spent; what a plan says of memory is each method's own."""

from dataclasses import replace

import pytest
import yaml

from harness.driver import memory
from harness.driver.experiment import Site
from harness.driver.memory import Needs, refuse_too_large
from harness.driver.plan import plan_study
from harness.driver.resolve import resolve
from harness.errors import SpecError
from harness.records.paths import Paths
from harness.records.trial import TrialConfig
from harness.runners.base import backend, parse_options
from harness.study.load import load_study
from harness.workers import devices


@pytest.fixture(scope="module")
def experiment(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    families = {
        "all": {"method": "full"},
        "beside": {"method": "lora"},
        "packed": {"method": "qlora"},
        "pairs": {"method": "lora", "objective": "continued_pretraining"},
    }
    study = {
        "name": "memory", "question": "?", "base_models": [str(world.llama)], "tasks": ["text"],
        "families": families, "budget": {"trials": 2, "steps": 10},
    }  # fmt: skip
    (folder / "memory.yaml").write_text(yaml.safe_dump(study))
    site = Site(paths=Paths(folder / "results", folder / "reports"), task_folders=(world.tasks,))
    return resolve(load_study(folder / "memory.yaml"), site)


def needs(experiment, family, least=False):
    model, task = experiment.arenas[0]
    pipeline = experiment.families[family].pipeline(model.ref, {})
    return Needs(experiment).of(TrialConfig(pipeline=pipeline, task=task.ref, steps=1), least)


def test_a_plan_says_of_each_family_what_its_own_method_holds(experiment):
    plan = plan_study(experiment)
    told = {one.family: one.memory for one in plan.memory}
    assert told["all"].weights < 100  # the frequencies of rotary positions
    assert told["beside"].weights > told["packed"].weights > 0
    assert told["all"].moments == 2 * told["all"].trained
    assert len({one.peak for one in told.values()}) == 4
    process = memory.PROCESS_BYTES  # on a CPU a record has the memory of the whole process
    assert {name: f.peak_memory_bytes for name, f in plan.families.items()} == pytest.approx(
        {name: one.peak + process for name, one in told.items()}
    )
    assert "all on" in plan.text()


def test_what_is_found_out_is_kept(experiment, monkeypatch):
    before = needs(experiment, "all")
    monkeypatch.setattr(memory, "_found_out", lambda *_: pytest.fail("it was found out again"))
    assert needs(experiment, "all") == before


def test_what_does_not_fit_a_gpu_even_in_the_smallest_passes_is_refused_with_the_remedy(experiment, monkeypatch):
    monkeypatch.setattr(memory, "CONTEXT_BYTES", 0)
    least = {family: needs(experiment, family, least=True).peak for family in experiment.families}
    assert least["all"] < needs(experiment, "all").peak
    room = 1.1 * least["all"] - 1000
    options = {"gpus": "1", "gpu_gb": str(room / 1e9)}
    small = replace(experiment, site=replace(experiment.site, runner="slurm", options=options))
    with pytest.raises(SpecError) as refused:
        refuse_too_large(small)
    assert "every trial must fit a single GPU of" in str(refused.value)
    assert "all on" in str(refused.value)
    assert "qlora" in str(refused.value)
    assert "beside on" not in str(refused.value)
    large = replace(small.site, options=options | {"gpu_gb": "80"})
    refuse_too_large(replace(experiment, site=large))
    refuse_too_large(replace(experiment, site=replace(large, options={"gpus": "1"})))  # nobody says


def test_where_a_site_says_how_much_memory_there_is(monkeypatch):
    slurm, local = backend("slurm"), backend("local")
    assert slurm.memory(parse_options("slurm", {"gpus": "1", "gpu_gb": "80", "mem_gb": "8"})) == 80e9
    assert slurm.memory(parse_options("slurm", {"mem_gb": "8"})) == 8e9
    assert slurm.memory(parse_options("slurm", {"gpus": "1"})) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.memory(parse_options("local", {})) == devices.main_memory_bytes() > 1e8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    said = "81559\n40960\n"
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": said}))
    assert local.memory(parse_options("local", {})) == 40960 << 20
