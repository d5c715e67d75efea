"""A stand-in for real trials at the boundary between the driver and its workers: trivial, fast, and counted."""

import os
import resource
import signal
import time
from functools import partial
from pathlib import Path

from harness.driver.experiment import Experiment, ModelInfo, Site, TaskInfo
from harness.driver.phases import run_phase
from harness.errors import SpecError, StorageError
from harness.metrics.base import SHARE
from harness.models.facts import ModelFacts
from harness.records.paths import Paths
from harness.records.results import find_result, write_result
from harness.records.trial import CostRecord, ModelRef, Provenance, Score, TaskRef, TrialResult, TrialStatus
from harness.study.family import resolved_families
from harness.study.spec import StudySpec
from harness.trial.provenance import plugin_code

WORK = "tests.driver.standin:work"
REPOSITORY = Path(__file__).parents[2]
DEFAULT_RATE = 2e-4
"""Learning rate of the first trial of a LoRA family."""
TOGETHER = {
    "a": {"method": "lora"},
    "b": {"method": "lora", "params": {"target": "attention"}},
}
"""Families whose trials train together; those of two families do not."""


def work(workspace):
    return lambda configs: run_pack(configs, workspace)


def run_pack(configs, workspace):
    if path := os.environ.get("STANDIN_PACKS"):
        with open(path, "a") as file:
            file.write(" ".join(config.key for config in configs) + "\n")
    return [run_one(config, workspace.paths) for config in configs]


def dismiss(folder):
    """End the workers that phases below a folder left warm."""
    from harness.runners.base import parse_options, recorded_jobs
    from harness.runners.local import LocalBackend

    for lines in folder.rglob("jobs.jsonl"):
        LocalBackend(lines.parent, parse_options("local", {})).cancel(recorded_jobs(lines))


def run_one(config, paths):
    """Best at a learning rate of 1e-3; tells in RAN that it ran, and obeys the variables of the tests."""
    found = find_result(paths, config.key)
    if found is not None:
        return found
    note("STANDIN_RAN", config)
    eaten = b"1" * (int(os.environ.get("STANDIN_EATS_MB", "0")) << 20)  # noqa: F841  held until the trial has ended
    if path := os.environ.get("STANDIN_GPUS"):
        with open(path, "a") as file:
            file.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.environ.get('SLURM_JOB_ID')} {os.getpid()}\n")
    time.sleep(float(os.environ.get("STANDIN_SECONDS", "0")))
    params = config.pipeline.stages[0].params
    rate = float(params.get("learning_rate", 1e-3))
    misbehave(os.environ.get("STANDIN_TROUBLE", ""), rate, config)
    value = 1.0 - abs(rate - 1e-3) * config.fidelity - config.seed % 97 * 1e-9
    diverged = os.environ.get("STANDIN_TROUBLE") == "diverge" and rate > 1e-4
    score = Score(
        task=config.task.name,
        split=config.evaluation.split,
        metric="acc",
        value=value,
        stderr=None,
        n=10,
        higher_is_better=True,
        comparability="same",
    )
    result = TrialResult(
        config=config,
        status=TrialStatus.DIVERGED if diverged else TrialStatus.COMPLETE,
        scores=() if diverged else (score,),
        cost=CostRecord(seconds={"train": float(os.environ.get("STANDIN_COST", "1"))}),
        provenance=Provenance(harness_version="0.1.0", plugins=plugin_code(config, (score,))),
    )
    if os.environ.get("STANDIN_CHECKPOINT"):
        (paths.checkpoint(config.key)).mkdir(parents=True)
        paths.rungs(config.at(1.0).key).mkdir(parents=True, exist_ok=True)
    write_result(paths, result)
    note("STANDIN_DONE", config)
    return result


def note(variable, config):
    """One line in a file that all processes append to: who ran what."""
    if path := os.environ.get(variable):
        with open(path, "a") as file:
            file.write(f"{config.key} {os.getpid()}\n")


def ran_so_far():
    """Lines of the file in which every run is noted, this one included."""
    return Path(os.environ["STANDIN_RAN"]).read_text().splitlines()


def misbehave(trouble, rate, config):
    if trouble == "crash":
        signal.raise_signal(signal.SIGSEGV)
    if trouble == "die-by-default" and rate == DEFAULT_RATE:
        signal.raise_signal(signal.SIGSEGV)
    if trouble == "killed-thrice" and len(ran_so_far()) <= 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble.startswith("bug-once:") and not Path(trouble[9:]).exists():
        Path(trouble[9:]).touch()
        raise RuntimeError("as the test asked")
    if trouble == "full-disk":  # from here on this process can write nothing: EFBIG instead of ENOSPC, same path
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    errors = {"spec": SpecError, "storage": StorageError, "bug": RuntimeError}
    if trouble in errors:
        raise errors[trouble]("as the test asked")


def study(**changes):
    """Two families on two tasks, three trials each."""
    data = {
        "name": "standin",
        "question": "Does the driver drive?",
        "base_models": ["model"],
        "tasks": ["one", "two"],
        "families": {
            "a": {"method": "none"},
            "b": {"method": "none", "params": {"weight_decay": {"low": 0.0, "high": 0.1}}},
        },
        "budget": {"trials": 3, "steps": 9},
        "search": {"sampler": "random"},
        "confirm": {"finalists": 1, "seeds": 2},
    }
    return StudySpec.model_validate(data | changes)


def experiment(spec, site, **changes):
    """What `resolve` would give, without models and tasks."""
    items = {"validation": (10,), "test": (10,)}
    tasks = [
        TaskInfo(ref=TaskRef(name, "f"), higher_is_better=True, scale=SHARE, rows=90, chars=30.0, items=items)
        for name in spec.tasks
    ]
    models = [ModelInfo(ModelRef(model.name, "r"), ModelFacts(parameters=1000)) for model in spec.base_models]
    fields = {"models": tuple(models), "tasks": tuple(tasks), "families": resolved_families(spec)}
    return Experiment(spec=spec, site=site, **(fields | changes))


def run(phase, spec, site, **changes):
    """Run a phase; `changes` are to what its names stand for."""
    return run_phase(phase, spec, site, partial(experiment, **changes))


def site(folder, runner="inline", **changes):
    options = {} if runner == "inline" else {"workers": "2"}
    fields = {"paths": Paths(folder / "results", folder / "reports"), "runner": runner, "options": options}
    return Site(**(fields | {"device": "cpu", "display": False, "work": WORK} | changes))
