"""The race: the same sweep with today's tools and with the harness, on the same machine, in the same session.

    python benchmarks/race.py run --model stories260K --trials 8 --ways warm_tuned_pairs,harness
    python benchmarks/race.py table

`run` measures the ways one after another and appends a JSON line for each to FOLDER/measured.jsonl, so that a long race
can be run in pieces; `table` prints every figure beside its baseline and goal. Every way starts from nothing but the
data, the base model and a warm page cache: its start, imports and first-time measurements are in its wall time.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from race_data import ALPHA, MAX_LENGTH, MODELS, Data, prepare, project, trials_of
from race_table import printed

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
SUBREAPER = 36
"""Number of Linux's `PR_SET_CHILD_SUBREAPER`."""
CONFIRM_SEEDS = 5


@dataclass
class Course:
    """One way's run: what it is asked, and a folder of its own."""

    data: Data
    model: str
    trials: int
    folder: Path
    extra: dict[str, Any] = field(default_factory=dict)
    """What a way reports beside its outcomes."""

    def environment(self, threads: int | None) -> dict[str, str]:
        """Variables of its processes: caches that are empty, no network, and threads unless left to the tools."""
        caches = {"HF_HOME": "hf", "XDG_CACHE_HOME": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
        kept = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        kept |= {name: str(self.folder / where) for name, where in caches.items()}
        kept |= {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
        }
        return kept | ({"OMP_NUM_THREADS": str(threads)} if threads else {})

    def call(self, command: list[str], name: str, threads: int | None, fine: tuple[int, ...] = (0,)) -> str:
        """Run a command, with its output in a log of that name, until it ends with a `fine` status; what it printed."""
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            done = subprocess.run(command, env=self.environment(threads), stdout=file, stderr=subprocess.STDOUT)
        text = log.read_text(errors="replace")
        if done.returncode not in fine:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{text[-3000:]}")
        return text


Outcomes = list[dict[str, Any]]
Way = Callable[[Course], Outcomes]


def command_lines(tuned: bool, pairs: bool = False) -> Way:
    """`trl sft`, then `lm_eval`, for each trial; two trials at a time with one thread each if `pairs`."""

    def way(course: Course) -> Outcomes:
        numbers = range(course.trials)
        with ThreadPoolExecutor(2 if pairs else 1) as pool:
            return list(
                pool.map(lambda number: _command_line_trial(course, number, tuned, 1 if pairs else None), numbers)
            )

    return way


def _command_line_trial(course: Course, number: int, tuned: bool, threads: int | None) -> dict[str, Any]:
    trial, model = trials_of(course.trials)[number], str(course.data.model(course.model))
    adapter, scores = course.folder / f"adapter{number}", course.folder / f"scores{number}"
    train = [BIN / "trl", "sft", "--use_cpu", "--model_name_or_path", model, "--dataset_name", course.data.rows]
    train += ["--output_dir", adapter, "--num_train_epochs", 1, "--per_device_train_batch_size", 8]
    train += ["--learning_rate", trial.rate, "--seed", trial.seed, "--use_peft", "--lora_r", trial.rank]
    train += ["--lora_alpha", ALPHA, "--lora_dropout", 0, "--lora_target_modules", "all-linear"]
    score = [BIN / "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},peft={adapter}"]
    score += ["--tasks", "race", "--include_path", course.data.tasks, "--output_path", scores]
    if tuned:
        train += ["--gradient_checkpointing", "false", "--bf16", "false", "--max_length", MAX_LENGTH]
        train += ["--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"]
        score += ["--batch_size", 32, "--device", "cpu"]
    printed_losses = course.call([str(part) for part in train], f"train{number}", threads)
    course.call([str(part) for part in score], f"score{number}", threads)
    found = json.loads(next(scores.rglob("results*.json")).read_text())["results"]["race"]["acc,none"]
    losses = re.findall(r"'train_loss': '?([\d.e+-]+)", printed_losses)
    return asdict(trial) | {"loss": float(losses[-1]), "accuracy": found}


def warm(*options: str, processes: int = 1, confirm: bool = False) -> Way:
    """`race_warm.py`, as one process with two threads or two with one."""

    def way(course: Course) -> Outcomes:
        out = course.folder / "outcomes"
        out.mkdir()
        command = [sys.executable, str(HERE / "race_warm.py"), "--data", str(course.data.root), "--model", course.model]
        command += ["--trials", str(course.trials), "--out", str(out), "--threads", str(2 // processes), *options]
        command += ["--confirm", str(CONFIRM_SEEDS)] if confirm else []
        shards = [[*command, "--shard", str(number), str(processes)] for number in range(processes)]
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(lambda i: course.call(shards[i], f"shard{i}", 2 // processes), range(processes)))
        outcomes = [o for path in sorted(out.glob("?.json")) for o in json.loads(path.read_text())]
        fresh = [o for path in sorted(out.glob("*.confirmed.json")) for o in json.loads(path.read_text())]
        course.extra |= _winner(fresh)
        return outcomes

    return way


def harness(runner: str, threads: int = 1, changes: Mapping[str, Any] | None = None, confirm: bool = False) -> Way:
    """`harness search`, as a user types it, and `harness confirm` if asked for."""

    def way(course: Course) -> Outcomes:
        root = course.folder / "project"
        project(root, course.data, course.model, course.trials, dict(changes or {}))
        for verb in ("search", "confirm") if confirm else ("search",):
            command = [str(BIN / "harness"), "--root", str(root), verb, "race", "--quiet", "--runner", runner]
            course.call([*command, "--runner-option", f"threads={threads}"], verb, threads)
        outcomes = recorded(root, "validation")
        course.extra |= _winner(recorded(root, "test"))
        return outcomes

    return way


def recorded(root: Path, split: str) -> Outcomes:
    """Outcomes of a project's full-fidelity trials on a split, from its records."""
    from harness.records.paths import Paths
    from harness.records.results import iterate_results
    from harness.records.trial import TrialResult

    found = [result for _, result in iterate_results(Paths(root / "results")) if isinstance(result, TrialResult)]
    outcomes = []
    for result in found:
        params, config = result.config.pipeline.stages[0].params, result.config
        if config.fidelity < 1 or config.evaluation.split != split or "rank" not in params:
            continue
        outcome: dict[str, Any] = {"rate": params["learning_rate"], "rank": params["rank"], "seed": config.seed}
        outcome |= {"loss": result.curve[-1].loss if result.curve else None, "status": str(result.status)}
        outcome |= {"accuracy": result.target.value if result.target else None, "seconds": dict(result.cost.seconds)}
        outcomes.append(outcome | {"trained_with": result.cost.trained_with})
    return outcomes


def _winner(fresh: Outcomes) -> dict[str, Any]:
    """The configuration that fresh seeds confirmed, and their mean test accuracy."""
    if not fresh:
        return {}
    mean = sum(outcome["accuracy"] for outcome in fresh) / len(fresh)
    return {"winner": [fresh[0]["rate"], fresh[0]["rank"]], "confirmed": mean, "seeds": len(fresh)}


def batch_two(course: Course) -> Outcomes:
    """Batch 2, 100 steps: trials one by one and in one pack, in one process."""
    root = course.folder / "project"
    small = {"budget": {"trials": course.trials, "steps": 100}, "params": {"batch_size": 2}}
    project(root, course.data, course.model, course.trials, small)
    text = course.call([sys.executable, str(HERE / "race_packs.py"), str(root)], "packs", 1)
    course.extra |= json.loads(text.splitlines()[-1])
    return []


def scoring(course: Course) -> Outcomes:
    """`scoring.py` on as many adapters as there are trials; it ends with 1 where a goal is missed."""
    command = [sys.executable, str(HERE / "scoring.py"), "--model", course.model, "--adapters", str(course.trials)]
    text = course.call(command, "scoring", 1, fine=(0, 1))
    seconds = {name: float(value) for name, value in re.findall(r"^(\w+) +([\d.]+) s ", text, re.MULTILINE)}
    course.extra |= {"apart_s": seconds["simple_evaluate"], "together_s": seconds["together"]}
    course.extra |= {"said": re.findall(r"^log-likelihoods.*$", text, re.MULTILINE)[0]}
    return []


HALVING = {"search": {"sampler": "random", "scheduler": "successive_halving", "fractions": [1.0]}}
FINAL = {"confirm": {"finalists": 1, "seeds": CONFIRM_SEEDS}}
WAYS: dict[str, Way] = {
    "cli_default": command_lines(tuned=False),
    "cli_tuned": command_lines(tuned=True),
    "cli_tuned_pairs": command_lines(tuned=True, pairs=True),
    "warm_default": warm(),
    "warm_tuned": warm("--tuned"),
    "warm_tuned_bf16": warm("--tuned", "--bf16"),
    "warm_tuned_pairs": warm("--tuned", processes=2),
    "warm_tuned_bf16_pairs": warm("--tuned", "--bf16", processes=2),
    "warm_other_seed": warm("--tuned", "--seed", "100", processes=2),
    "warm_confirmed": warm("--tuned", processes=2, confirm=True),
    "warm_confirmed_bf16": warm("--tuned", "--bf16", processes=2, confirm=True),
    "harness": harness("local"),
    "harness_inline": harness("inline"),
    "harness_inline_2": harness("inline", threads=2),
    "harness_confirmed": harness("local", changes=HALVING | FINAL, confirm=True),
    "batch2": batch_two,
    "scoring": scoring,
}
"""Name to what it does; see benchmarks/README.md."""


def measured(way: str, course: Course) -> dict[str, Any]:
    """Run a way in this process, whose only children are its own; wall and CPU seconds, largest process, outcomes.

    Workers that outlive their parent become children of this process, so that their CPU seconds are counted, too.
    """
    with suppress(OSError, AttributeError):  # elsewhere than on Linux, CPU seconds of detached workers are missing
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    load, started = os.getloadavg(), time.perf_counter()
    outcomes = WAYS[way](course)
    wall = time.perf_counter() - started
    with suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "way": way,
        "model": course.model,
        "trials": course.trials,
        "wall_s": round(wall, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "largest_process_mb": used.ru_maxrss // 1024,
        "load_before": [round(value, 2) for value in load],
        "outcomes": outcomes,
        **course.extra,
    }


def run(options: argparse.Namespace) -> None:
    """Measure the ways asked for, each in a process of its own."""
    source = os.environ.get("HARNESS_DATA")
    if source is None:
        raise SystemExit("HARNESS_DATA must name the folder of shared data, but is not set: export it")
    prepare(options.folder, Path(source))
    heavy = "import datasets, lm_eval.evaluator, lm_eval.models.huggingface, peft, torch, transformers, trl"
    subprocess.run([sys.executable, "-c", f"{heavy}; trl.SFTTrainer"], check=True, capture_output=True)
    for way in options.ways.split(","):
        print(f"{options.model}, {options.trials} trials, {way} ...", flush=True)
        command = [sys.executable, __file__, "--folder", str(options.folder), "one", options.model, str(options.trials)]
        subprocess.run([*command, way], check=True)


def one(options: argparse.Namespace) -> None:
    """Measure one way and append its line."""
    folder = options.folder / "ways" / f"{options.model}-{options.trials}-{options.way}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    course = Course(Data(options.folder.resolve() / "data"), options.model, options.trials, folder.resolve())
    line = measured(options.way, course)
    with (options.folder / "measured.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print({key: value for key, value in line.items() if key not in ("outcomes", "apart", "together")}, flush=True)


def main() -> None:
    """Run, or print what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "harness-race")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="measure ways")
    verb.add_argument("--model", choices=MODELS, default=MODELS[0])
    verb.add_argument("--trials", type=int, default=8)
    verb.add_argument("--ways", default="warm_tuned_pairs,harness", help=f"of {', '.join(WAYS)}")
    verb = verbs.add_parser("one", help="measure one way in this process")
    verb.add_argument("model", choices=MODELS)
    verb.add_argument("trials", type=int)
    verb.add_argument("way", choices=WAYS)
    verbs.add_parser("table", help="print every figure beside its baseline and goal")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.verb == "table":
        lines = (options.folder / "measured.jsonl").read_text().splitlines()
        print(printed([json.loads(line) for line in lines]))
        return
    {"run": run, "one": one}[options.verb](options)


if __name__ == "__main__":
    main()
