"""Workers that are told to leave, or killed, in the midst of real trials: does anybody see it in the results?

    python benchmarks/interruptions.py [--steps 200] [--times 3] [--disk FOLDER]

A real worker takes trials on the smallest embedded model from a queue, one alone (full fine-tuning, LoRA) or two together,
and is interrupted when a trial has reached a step that chance chooses: by SIGUSR2, by SIGTERM, or by SIGKILL between two
checkpoints. Another worker goes on. Printed are the steps that were reached, those that were done again, and what differs
from an undisturbed run. With `--disk`, an empty file system of a few megabytes, checkpoints meet a full disk there.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import harness.testbed
from harness.records.paths import Paths
from harness.records.results import find_result
from harness.records.trial import Evaluation, ModelRef, Pipeline, Stage, TaskRef, TrialConfig, TrialResult
from harness.trial.workspace import Workspace
from harness.workers.worker import Duty, Folders, serve, write_item

TASK, TASKS = "tb_sort", Path(harness.testbed.__file__).with_name("tasks")
VARIABLE = "BENCHMARK_JOB"


def trials(kind: str, steps: int) -> list[TrialConfig]:
    """One trial, or two that train together."""
    rates = (1e-3, 3e-3) if kind == "together" else (1e-3,)
    method = "full" if kind == "full" else "lora"
    return [
        TrialConfig(
            pipeline=Pipeline(
                ModelRef("tiny-1m", ""), (Stage(method=method, params={"learning_rate": rate, "batch_size": 8}),)
            ),
            task=TaskRef(TASK, ""),
            steps=steps,
            evaluation=Evaluation(limit=20, fractions=(0.5, 1.0)),
        )
        for rate in rates
    ]


def work(folder: Path) -> None:
    """A worker's life, until its queue is empty."""
    duty = Duty(
        queue=folder / "queue",
        work="harness.trial.group:warm_up",
        workspace=Workspace(Paths(folder / "results"), (TASKS,), device="cpu"),
        idle_s=0.1,
        job_id_variable=VARIABLE,
    )
    Folders(duty.queue).rest.touch()
    serve(duty)


def start(folder: Path, configs: Sequence[TrialConfig], minutes: float) -> subprocess.Popen[bytes]:
    """Queue a pack, and start a worker for it."""
    folders = Folders(folder / "queue")
    shutil.rmtree(folders.root, ignore_errors=True)
    folders.make()
    write_item(folders.todo, "1.json", configs)
    environment = os.environ | {VARIABLE: "1", "HARNESS_CHECKPOINT_MIN": str(minutes)}
    with (folder / "worker.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--worker", str(folder)], env=environment, stdout=log, stderr=log
        )


def reached(paths: Paths, key: str) -> int:
    """The step of a trial's last checkpoint; 0 before the first."""
    folders = paths.midway(key).glob("0-*")
    return max((int(path.name.partition("-")[2]) for path in folders), default=0)


def interrupt(folder: Path, configs: Sequence[TrialConfig], number: int, rng: random.Random) -> int | None:
    """Let a worker get on for a while, then send it a signal; the step that is saved, None where it was done before."""
    paths, key = Paths(folder / "results"), configs[0].key
    before, worker = reached(paths, key), start(folder, configs, 0.001)
    while worker.poll() is None and reached(paths, key) == before and find_result(paths, key) is None:
        time.sleep(0.05)  # until it has saved once, which says that it trains
    time.sleep(rng.uniform(0.0, 2.0))
    worker.send_signal(number)
    status = worker.wait()
    if status == 0 or find_result(paths, key) is not None:  # it had ended, or was ending, when the signal came
        return None
    assert status == (-number if number == signal.SIGKILL else 128 + number), status
    return reached(paths, key)


def told(result: TrialResult) -> object:
    """What must be the same to the bit."""
    return (
        [(score.task, score.value) for score in result.scores],
        [(point.step, point.tokens, point.loss, point.score) for point in result.curve],
        (result.cost.tokens, result.cost.flops),
    )


def main() -> None:
    """Print a line for each kind of trial and signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--disk", type=Path)
    parser.add_argument("--worker", type=Path)
    chosen = parser.parse_args()
    if chosen.worker:
        work(chosen.worker)
        return
    rng, root = random.Random(0), Path(tempfile.mkdtemp(prefix="interruptions-"))
    for kind in ("lora", "full", "together"):
        configs, straight = trials(kind, chosen.steps), root / f"{kind}-straight"
        straight.mkdir()
        assert start(straight, configs, 0).wait() == 0, straight
        signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL)
        for number in signals:
            folder = root / f"{kind}-{number.name}"
            folder.mkdir()
            steps = [interrupt(folder, configs, number, rng) for _ in range(chosen.times)]
            assert start(folder, configs, 0).wait() == 0, folder
            report(f"{kind}, {number.name} after steps {steps}", configs, straight, folder)
        if chosen.disk:
            folder = chosen.disk / kind
            folder.mkdir()
            (chosen.disk / "fill").write_bytes(bytes(max(0, shutil.disk_usage(folder).free - (1 << 20))))
            assert start(folder, configs, 0.001).wait() == 0, folder
            report(f"{kind}, full disk", configs, straight, folder)
            shutil.rmtree(folder)
            (chosen.disk / "fill").unlink()


def report(what: str, configs: Sequence[TrialConfig], straight: Path, folder: Path) -> None:
    """Print whether records agree, and what interrupted ones say."""
    for config in configs:
        theirs, ours = (find_result(Paths(place / "results"), config.key) for place in (straight, folder))
        assert ours is not None, folder
        assert theirs is not None, straight
        same = "the same to the bit" if told(ours) == told(theirs) else f"DIFFERENT: {told(ours)}, {told(theirs)}"
        resumed = ours.provenance.effective.resumed
        missed = sum("could not be saved" in note for note in ours.notes)
        print(
            f"{what}: {ours.status}, {same}; went on after {resumed.steps if resumed else ()}, {missed} not saved",
            flush=True,
        )


if __name__ == "__main__":
    main()
