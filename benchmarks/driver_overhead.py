"""Overhead of the driver per trial, with an objective that takes no time.

    python benchmarks/driver_overhead.py [--trials 200] [--sampler tpe]
    python benchmarks/driver_overhead.py --growth 1000 10000 --sampler random

Goals: 30 ms in this process, 300 ms with two worker processes of this machine. The bare baseline is Optuna's own loop
with the same sampler, and a record written and fsynced for each trial, in the same run.

With `--growth`, one cell of each size is searched in this process: CPU time of the driver for each trial, what it takes
to go on with a cell of which all trials have records, what `harness status` takes, and the ratio to the first size. The sampler's own arithmetic is
in it, and is linear in the cell's trials for `tpe`; `random` has none. Without its receipt a complete phase reads all of
its records again, as one does that goes on after it was killed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from harness.cli.status import looks
from harness.driver.experiment import Experiment, ModelInfo, Site, TaskInfo
from harness.driver.phases import run_phase
from harness.files import write_atomically
from harness.models.facts import ModelFacts
from harness.plugins import load
from harness.records.paths import Paths
from harness.records.results import write_result
from harness.records.trial import CostRecord, ModelRef, Score, TaskRef, TrialConfig, TrialResult, TrialStatus
from harness.study.family import resolved_families
from harness.study.spec import StudySpec
from harness.trial.workspace import Workspace
from harness.workers.worker import Work

GOAL_MS = {"inline": 30, "local": 300}


def work(workspace: Workspace) -> Work:
    """What a worker does when it starts."""
    return partial(run_pack, workspace=workspace)


def run_pack(configs: Sequence[TrialConfig], workspace: Workspace) -> list[TrialResult]:
    """Best at a learning rate of 1e-3, at once."""
    results = []
    for config in configs:
        rate = float(config.pipeline.stages[0].params["learning_rate"])
        score = Score(
            task=config.task.name,
            split="validation",
            metric="acc",
            value=1 - abs(rate - 1e-3),
            stderr=None,
            n=1,
            higher_is_better=True,
            comparability="same",
        )
        cost = CostRecord(seconds={"train": 0.001})
        results.append(TrialResult(config=config, status=TrialStatus.COMPLETE, scores=(score,), cost=cost))
        write_result(workspace.paths, results[-1])
    return results


def study(trials: int, sampler: str) -> StudySpec:
    """One family with one searched parameter on one task."""
    return StudySpec.model_validate(
        {
            "name": "overhead",
            "question": "What does the driver cost?",
            "base_models": ["model"],
            "tasks": ["task"],
            "families": {"a": {"method": "none"}},
            "budget": {"trials": trials, "steps": 1},
            "search": {"sampler": sampler},
        }
    )


def driven(runner: str, spec: StudySpec, folder: Path) -> float:
    """Wall seconds from the first record of a search to its last, so that starting up is left out."""
    options = {"workers": "2"} if runner == "local" else {}
    paths = Paths(folder / runner, folder)
    site = Site(paths=paths, runner=runner, options=options, device="cpu", display=False, work="driver_overhead:work")
    run_phase("search", spec, site, _experiment)
    times = sorted(path.stat().st_mtime for path in paths.trials.glob("*/*/record.json"))
    return times[-1] - times[0]


def _experiment(spec: StudySpec, site: Site) -> Experiment:
    """The study without any model or task behind its names."""
    items = {"validation": (1,), "test": (1,)}
    return Experiment(
        spec=spec,
        site=site,
        models=(ModelInfo(ModelRef("model", "r"), ModelFacts(parameters=1)),),
        tasks=(TaskInfo(ref=TaskRef("task", "f"), higher_is_better=True, rows=1, chars=1.0, items=items),),
        families=resolved_families(spec),
    )


def bare(trials: int, sampler: str, folder: Path) -> float:
    """Wall seconds of Optuna's own ask and tell, with one fsynced file for each trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loop = optuna.create_study(direction="maximize", sampler=load("search/samplers", sampler)().create(0))
    started = time.time()
    for number in range(trials):
        trial = loop.ask()
        value = 1 - abs(trial.suggest_float("learning_rate", 1e-6, 1e-1, log=True) - 1e-3)
        loop.tell(trial, value)
        write_atomically(folder / "bare" / f"{number}.json", "x" * 2500)
    return time.time() - started


def growth(sizes: Sequence[int], sampler: str) -> None:
    """Print the driver's CPU time for each trial in cells of these sizes."""
    first = None
    for trials in sizes:
        spec, spent = study(trials, sampler), [time.process_time()]
        with tempfile.TemporaryDirectory() as name:
            receipt = Paths(Path(name) / "inline").study(spec.name).receipt("search")
            for keep in (True, False, True):
                driven("inline", spec, Path(name))
                spent.append(time.process_time())
                if not keep:
                    receipt.unlink()
            next(looks(Paths(Path(name) / "inline"), spec.name, watch=False))
            spent.append(time.process_time())
        cpu_ms = (spent[1] - spent[0]) / trials * 1000
        first = first or cpu_ms
        print(
            f"{sampler:<7} {trials:>7} trials {cpu_ms:7.2f} ms CPU each, {cpu_ms / first:5.2f} x the first size; "
            f"the same again with nothing to do {spent[2] - spent[1]:6.2f} s CPU, {spent[3] - spent[2]:.2f} s without its receipt, "
            f"harness status {spent[4] - spent[3]:.2f} s"
        )


def main() -> None:
    """Print milliseconds per trial beside the goals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--growth", type=int, nargs="+", metavar="TRIALS")
    arguments = parser.parse_args()
    here = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, here)
    if arguments.growth:
        growth(arguments.growth, arguments.sampler)
        return
    spec = study(arguments.trials, arguments.sampler)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, Callable[[], float]] = {
            "bare": lambda: bare(arguments.trials, arguments.sampler, folder),
            "inline": lambda: driven("inline", spec, folder),
            "local": lambda: driven("local", spec, folder),
        }
        for case, measure in measured.items():
            cpu = time.process_time()
            wall_ms = measure() / arguments.trials * 1000
            cpu_ms = (time.process_time() - cpu) / arguments.trials * 1000
            goal = GOAL_MS.get(case)
            failed |= goal is not None and wall_ms > goal
            shown = f"{case:<7} {wall_ms:7.1f} ms per trial, {cpu_ms:6.1f} ms CPU of the driver"
            print(shown + (f"   goal {goal} ms" if goal else ""))
        print(f"load of this machine: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    sys.exit(failed)


if __name__ == "__main__":
    main()
