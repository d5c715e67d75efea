"""A job of several workers: each sees one GPU, and one that dies takes nothing with it but what it held."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import pytest

from harness.files import read_lines
from harness.records.causes import Cause
from harness.records.trial import ModelRef, Pipeline, Stage, TaskRef, TrialConfig
from harness.trial.workspace import Workspace
from harness.workers.worker import Duty, Folders, read_item, write_item
from tests.patience import PATIENCE_S

CODE = """
import pickle, sys
from harness.workers.job import serve_on_each_gpu
print(serve_on_each_gpu(pickle.load(open(sys.argv[1], "rb"))))
"""


def work(workspace):
    return lambda configs: [run(config, workspace.paths.results) for config in configs]


def run(config, folder):
    with (folder / "ran").open("a") as file:
        file.write(f"{config.seed} {os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}\n")
    time.sleep(0.3)
    if config.seed == 0 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if config.seed == 99:
        time.sleep(PATIENCE_S)


@pytest.fixture
def job(paths, tmp_path):
    """Starts a job of two workers with the packs of these seeds; its process, and the queue's folders."""
    started = []

    def start(*seeds, workers=2, visible="3,5"):
        paths.results.mkdir(parents=True, exist_ok=True)
        duty = Duty(
            tmp_path / "queue", f"{__name__}:work", Workspace(paths), 0.5, workers=workers, job_id_variable="JOB"
        )
        folders = Folders(duty.queue)
        folders.make()
        folders.rest.touch()
        for seed in seeds:
            write_item(folders.todo, f"{seed:02}.json", [config(seed)])
        (tmp_path / "duty").write_bytes(cloudpickle.dumps(duty))
        process = subprocess.Popen(
            [sys.executable, "-c", CODE, tmp_path / "duty"],
            env={**os.environ, "JOB": "8", "CUDA_VISIBLE_DEVICES": visible}, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        started.append(process)
        return process, folders

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def config(seed):
    return TrialConfig(
        pipeline=Pipeline(ModelRef("model", "r"), (Stage(method="lora"),)),
        task=TaskRef("task", "f"),
        steps=1,
        seed=seed,
    )


def ran(paths):
    path = paths.results / "ran"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_each_worker_has_one_of_the_jobs_gpus_and_both_take_packs(job, paths):
    process, folders = job(*range(1, 7))
    assert process.wait(PATIENCE_S) == 0
    assert sorted(path.name for path in folders.done.iterdir()) == [f"{seed:02}.json" for seed in range(1, 7)]
    by_gpu = {gpu: pid for _, gpu, pid in ran(paths)}
    assert sorted(by_gpu) == ["3", "5"]
    assert len({(gpu, pid) for _, gpu, pid in ran(paths)}) == 2
    assert process.stdout.read().strip() == "2"


def test_it_has_no_more_workers_than_it_was_told_and_than_it_sees(job, paths):
    process, _ = job(1, 2, 3, workers=1)
    assert process.wait(PATIENCE_S) == 0
    assert {gpu for _, gpu, _ in ran(paths)} == {"3"}
    process, _ = job(1, 2, 3, workers=4, visible="6")
    assert process.wait(PATIENCE_S) == 0
    assert {gpu for _, gpu, _ in ran(paths)} == {"3", "6"}


def test_a_worker_that_crashes_fails_its_pack_and_another_takes_its_place(job, paths):
    process, folders = job(*range(6))
    assert process.wait(PATIENCE_S) == 0
    assert [[config.seed for config in read_item(path)] for path in folders.failed.glob("*.json")] == [[0]]
    [why] = read_lines(folders.failed / "00.json.why")
    assert (why["cause"], why["reason"]) == (Cause.DIED, "its worker process died of SIGSEGV")
    assert 0.2 < why["seconds"] < PATIENCE_S
    assert len(list(folders.done.iterdir())) == 5
    assert len({pid for *_, pid in ran(paths)}) == 3
    assert {gpu for _, gpu, _ in ran(paths)} == {"3", "5"}


def test_when_the_job_is_told_to_leave_all_leave_and_the_driver_finds_what_they_held(job, paths):
    process, folders = job(99)
    end = time.monotonic() + PATIENCE_S
    while not ran(paths):
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR2)
    process.wait(PATIENCE_S)
    assert [path.name for path in (folders.claimed / "8").rglob("*.json")] == ["99.json"]
    assert list(folders.failed.iterdir()) == []
    assert (folders.claimed / "8" / ".left").read_text() == Cause.JOB_TIME
    with pytest.raises(ProcessLookupError):
        os.kill(int(ran(paths)[0][2]), 0)
