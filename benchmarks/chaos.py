"""Processes are killed, stopped and told to end, disks are full and files torn: does anybody see it in the results?

    python benchmarks/chaos.py [--faults 300] [--seed 0] [--kinds kill-worker before-driver ...] [--disk FOLDER]

A small study (base, search, confirm, database; two local workers) is run again and again. In each cycle some faults befall
it, the same command is typed after each until it ends by itself, and what it leaves is compared with an undisturbed run:

- lost: planned trials without a record; doubled: trials that ended twice; blamed: sound trials with another status than
  complete; unreadable: files that a later command cannot read; stuck: commands that did not end, or not with 0;
- other: tables of the database that differ, but for the columns of `database.equality.MAY_DIFFER`, and for torn records in `damaged`.

Faults: SIGKILL, SIGTERM, or SIGSTOP with SIGCONT a moment later, of the worker, its controller, the driver, or all at once,
while a trial runs; SIGKILL before or after the k-th call that changes a file, of worker, driver or ingester; no space at
such a call; a clock that jumps by hours while a trial runs, to and fro, for all processes but not for the file system
(a library of a few lines of C stands before libc's; without a C compiler these faults are left out); and a file cut off
while nothing runs (a record, the last line of a list). With `--disk`, all of it happens on that file system, which is also
full for a moment now and then. Trials take milliseconds, and processes are forks of one that has imported everything, so a
fault costs a fraction of a second. Snakemake is not run: its rules only type these commands, and `harness drill` kills it.

With `--real`, trials are those of the smallest embedded model, which save after every step: most faults hit a checkpoint in
mid-trial, and `torn-checkpoint` damages one. Then the undisturbed run's scores and losses are compared to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import importlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.database.equality import compared_columns, rows_of
from harness.database.ingest import connect, ingest
from harness.driver.experiment import Experiment, ModelInfo, Site, TaskInfo
from harness.driver.phases import run_phase
from harness.driver.resolve import resolve
from harness.errors import HarnessError, StorageError
from harness.metrics.base import SHARE
from harness.models.facts import ModelFacts
from harness.plugins import use_project
from harness.records.paths import Paths
from harness.records.results import find_result, iterate_results, write_result
from harness.records.study_trials import read_members
from harness.records.trial import (
    CostRecord,
    ModelRef,
    Provenance,
    Score,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
)
from harness.study.family import resolved_families
from harness.study.spec import StudySpec
from harness.tasks.task import task_folders
from harness.trial.workspace import Workspace
from harness.workers.worker import Work

HERE = Path(__file__).parent
PHASES = ("base", "search", "confirm")
PATIENCE_S = 60.0
SPEC = StudySpec.model_validate(
    {
        "name": "chaos",
        "question": "Does anybody see what happened?",
        "base_models": ["model"],
        "tasks": ["task"],
        "families": {
            "a": {"method": "lora"},
            "b": {"method": "lora", "params": {"target": "attention"}},
        },
        "budget": {"trials": 4, "steps": 1},
        "search": {"sampler": "random"},
        "confirm": {"finalists": 1, "seeds": 2},
    }
)


REAL = StudySpec.model_validate(
    SPEC.model_dump()
    | {
        "base_models": ["tiny-1m"],
        "tasks": ["tb_sort"],
        "budget": {"trials": 2, "steps": 8},
        "search": {"sampler": "random", "limit": 4},
        "confirm": {"finalists": 1, "seeds": 2, "limit": 4},
    }
)
"""The same with real trials; see `--real`."""
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile int64_t *offset;
__attribute__((constructor)) static void open_offset(void) {
  int file = open(getenv("CHAOS_CLOCK"), O_RDONLY);
  void *seen = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
  if (seen != MAP_FAILED) offset = seen;
}
int clock_gettime(clockid_t id, struct timespec *at) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(id, at);
  if (id == CLOCK_REALTIME && offset) at->tv_sec += *offset;
  return code;
}
time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  struct timespec now;
  int code = clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return code;
}
"""
"""What stands before libc's clocks: they are off by as many seconds as the file CHAOS_CLOCK says."""


def real_work(workspace: Workspace) -> Work:
    """What a worker does when it starts, with `--real`: it trains, and saves after every step."""
    from harness.trial import midway
    from harness.trial.group import warm_up

    arm("worker")
    midway.LARGEST_SHARE = float("inf")
    run = warm_up(workspace)

    def noted(configs: Sequence[TrialConfig]) -> list[TrialResult]:
        new = [config.key for config in configs if find_result(workspace.paths, config.key) is None]
        for key in new:
            note("ran", key)
        results = run(configs)
        for key in new:
            note("done", key)
        return results

    return noted


def work(workspace: Workspace) -> Work:
    """What a worker does when it starts."""
    arm("worker")
    return lambda configs: [run_one(config, workspace.paths) for config in configs]


def run_one(config: TrialConfig, paths: Paths) -> TrialResult:
    """A sound trial of a few milliseconds, whose score follows from its configuration."""
    if (found := find_result(paths, config.key)) is not None:
        return found
    note("ran", config.key)
    time.sleep(0.02)
    rate = float(config.pipeline.stages[0].params.get("learning_rate", 1e-3))
    score = Score(
        task=config.task.name,
        split=config.evaluation.split,
        metric="acc",
        value=1 - abs(rate - 1e-3) - config.seed % 97 * 1e-9,
        stderr=0.01,
        n=10,
        higher_is_better=True,
        comparability="same",
    )
    result = TrialResult(
        config=config,
        status=TrialStatus.COMPLETE,
        scores=(score,),
        cost=CostRecord(seconds={"train": 1.0}),
        provenance=Provenance(harness_version="0", study=SPEC.name),
    )
    write_result(paths, result)
    note("done", config.key)
    return result


def note(name: str, key: str) -> None:
    """A line in a file that the harness knows nothing of."""
    handle = os.open(Path(os.environ["CHAOS"]) / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{key}\n".encode())
    os.close(handle)


def arm(who: str) -> None:
    """Have this process meet the fault that waits for it, if one does: CHAOS_AT is `who:how:k`."""
    target, how, count = (os.environ.get("CHAOS_AT") or "::0").split(":")
    if target != who:
        return
    left = int(count)

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            meets = left == 0 and once()
            if meets and how == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            if meets and how == "full":
                raise OSError(errno.ENOSPC, "No space left on device")
            result = call(*args, **kwargs)
            if meets:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    names = ("fsync",) if how == "full" else ("fsync", "replace", "rename", "link", "unlink", "mkdir", "ftruncate")
    for name in names:
        setattr(os, name, wrapped(getattr(os, name)))


def once() -> bool:
    """Whether the fault has not befallen anybody yet."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(Path(os.environ["CHAOS"]) / "met", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return True
    return False


def command(folder: Path) -> int:
    """All commands of the study, one after the other, in this process; the exit code of the last."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s", force=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    paths = Paths(folder / "results", folder / "reports")
    real = "CHAOS_REAL" in os.environ
    options = {"workers": "2", "pack": "1" if real else "2", "idle_s": "5", "checkpoint_min": "0.000001"}
    site = Site(
        paths=paths, runner="forked", options=options, device="cpu", display=False, task_folders=task_folders(folder),
        work="chaos:real_work" if real else "chaos:work",
    )  # fmt: skip
    try:
        arm("driver")
        for phase in PHASES:
            run_phase(phase, REAL if real else SPEC, site, resolve if real else _experiment)
        if not os.environ["CHAOS_AT"] or "ingester" in os.environ["CHAOS_AT"]:  # it takes most of a command's time
            arm("ingester")
            ingest(paths)
    except HarnessError as error:
        logging.warning("%s", error)
        return error.exit_code
    except BaseException:
        logging.exception("the command ended with")
        return 99
    return 0


def _experiment(spec: StudySpec, site: Site) -> Experiment:
    """The study without any model or task behind its names."""
    items = {"validation": (10,), "test": (10,)}
    task = TaskInfo(ref=TaskRef("task", "f"), higher_is_better=True, scale=SHARE, rows=9, chars=9.0, items=items)
    return Experiment(
        spec=spec,
        site=site,
        models=(ModelInfo(ModelRef("model", "r"), ModelFacts(parameters=1000)),),
        tasks=(task,),
        families=resolved_families(spec),
    )


class Scene:
    """One cycle's folder, and the processes of its study."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng, self.paths = folder, rng, Paths(folder / "results", folder / "reports")
        self.torn: list[str] = []
        """Trials whose records were cut off: they run again, and the database names what was set aside."""
        folder.mkdir()
        os.environ["CHAOS"] = str(folder)

    def start(self, at: str = "") -> int:
        """Type the command."""
        from harness.runners.forked import fork  # type: ignore[import-not-found]

        os.environ["CHAOS_AT"] = at
        (self.folder / "met").unlink(missing_ok=True)
        pid: int = fork(lambda: command(self.folder))
        return pid

    def take_plan(self, other: Path) -> None:
        """Start with a plan of the same study: to make one takes longer than all of its trials."""
        mine, theirs = (Paths(folder / "results").study(SPEC.name).plan for folder in (self.folder, other))
        mine.parent.mkdir(parents=True)
        shutil.copyfile(theirs, mine)

    def lines(self, name: str) -> list[str]:
        """What was noted."""
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    def end(self, driver: int) -> int | None:
        """The command's exit code, 128 and more for a signal; None where it has not ended, and was killed."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            pid, status = os.waitpid(driver, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            reap(driver)
            time.sleep(0.01)
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
        return None

    def processes(self, driver: int) -> dict[str, list[int]]:
        """Living processes by what they are: those of this cycle, whoever their parent is."""
        found: dict[str, list[int]] = {"driver": [driver], "controller": [], "worker": []}
        claimed = self.paths.study(SPEC.name).queue / "claimed"
        for job in claimed.iterdir() if claimed.is_dir() else ():
            if not job.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                found["worker"] += map(int, Path(f"/proc/{job.name}/task/{job.name}/children").read_text().split())
                found["controller"].append(int(job.name))
        return found

    def signalled(self, who: str, number: int) -> bool:
        """Start the command, and send a signal while a trial runs; whether it came to that."""
        driver, ran = self.start("nobody::0"), len(self.lines("ran"))
        wanted = self.rng.randint(1, 3)
        while len(self.lines("ran")) < ran + wanted:
            pid, _ = os.waitpid(driver, os.WNOHANG)
            if pid:
                return False
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0, 0.03))
        found = self.processes(driver)
        targets = [pid for pids in found.values() for pid in pids] if who == "all" else found[who]
        if who != "all":
            targets = targets and [self.rng.choice(targets)]
        for pid in targets:
            send(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(0.2)
            for pid in targets:
                send(pid, signal.SIGCONT)
        self.end(driver)
        return bool(targets)

    def at_a_write(self, who: str, how: str) -> bool:
        """Start the command, which meets a fault at a write that chance chooses; whether it did."""
        most = {"driver": 60, "worker": 100 if "CHAOS_REAL" in os.environ else 12, "ingester": 6}[who]
        self.end(self.start(f"{who}:{how}:{self.rng.randint(1, most)}"))
        return (self.folder / "met").exists()

    def fill(self) -> bool:
        """Start the command, and let its disk be full for a moment while a trial runs; whether it came to that."""
        driver, ran = self.start("nobody::0"), len(self.lines("ran"))
        while len(self.lines("ran")) == ran:
            pid, _ = os.waitpid(driver, os.WNOHANG)
            if pid:
                return False
            time.sleep(0.002)
        rest = self.folder / "rest"
        with contextlib.suppress(OSError), rest.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        time.sleep(0.3)
        rest.unlink()
        self.end(driver)
        return True

    def jump(self) -> bool:
        """Start the command, and let the clocks jump while a trial runs; whether it came to that."""
        driver, ran = self.start("nobody::0"), len(self.lines("ran"))
        while len(self.lines("ran")) == ran:
            pid, _ = os.waitpid(driver, os.WNOHANG)
            if pid:
                return False
            time.sleep(0.002)
        set_clock(self.rng.randint(-24, 24) * 3600)
        self.end(driver)
        return True

    def tear_checkpoint(self) -> bool:
        """Kill all that runs once a trial has been saved in its midst, and damage a file of what it saved."""
        driver = self.start("nobody::0")
        while not (files := sorted(self.paths.trials.glob("*/*/midway/[0-9]*/*"))):
            pid, _ = os.waitpid(driver, os.WNOHANG)
            if pid:
                return False
            time.sleep(0.002)
        for pids in self.processes(driver).values():
            for pid in pids:
                send(pid, signal.SIGKILL)
        self.end(driver)
        self.stop_all()
        files = sorted(path for path in self.paths.trials.glob("*/*/midway/[0-9]*/*") if path.stat().st_size)
        if not files:
            return False
        path = self.rng.choice(files)
        raw = bytearray(path.read_bytes())
        raw[self.rng.randrange(len(raw))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(raw[: self.rng.choice((len(raw), self.rng.randrange(len(raw))))])
        return True

    def tear(self) -> bool:
        """Cut off a record, or the last line of a list, while nothing runs."""
        self.stop_all()
        records = [path for path in map(Path, self.paths.records()) if path.exists()]
        lists = [
            path for path in self.paths.study(SPEC.name).folder.glob("*.json*") if path.suffix in (".jsonl", ".json")
        ]
        lists = [path for path in lists if path.name != "study.json"]
        if not records + lists:
            return False
        path = self.rng.choice(records + lists)
        whole = path.read_bytes()
        last = whole.rstrip(b"\n").rfind(b"\n") + 1 if path.suffix == ".jsonl" else 0
        path.write_bytes(whole[: self.rng.randint(last, max(last, len(whole) - 1))])
        if path in records:
            self.torn.append(path.parent.name)
        return True

    def stop_all(self) -> None:
        """Kill what is left of the cycle."""
        for pids in self.processes(0).values():
            for pid in filter(None, pids):
                send(pid, signal.SIGKILL)
        reap()


def send(pid: int, number: int) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def reap(spared: int = 0) -> None:
    """Collect the dead whose parents have died, so that none of them is taken for alive."""
    with contextlib.suppress(ChildProcessError):
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if int(child) != spared:
                os.waitpid(int(child), os.WNOHANG)


FAULTS: dict[str, Callable[[Scene], bool]] = {
    f"{name}-{who}": lambda scene, who=who, number=number: scene.signalled(who, number)  # type: ignore[misc]
    for name, number in (("kill", signal.SIGKILL), ("term", signal.SIGTERM), ("stop", signal.SIGSTOP))
    for who in ("worker", "controller", "driver", "all")
} | {
    f"{how}-{who}": lambda scene, who=who, how=how: scene.at_a_write(who, how)  # type: ignore[misc]
    for how in ("before", "after", "full")
    for who in ("driver", "worker", "ingester")
}
FAULTS |= {
    "torn-file": Scene.tear,
    "full-disk": Scene.fill,
    "clock": Scene.jump,
    "torn-checkpoint": Scene.tear_checkpoint,
}


def set_clock(seconds: int) -> None:
    """Have the clocks of all processes off by so much from now on."""
    with open(os.environ["CHAOS_CLOCK"], "r+b", buffering=0) as file:
        file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


def with_clock() -> None:
    """Become a process before whose clocks `CLOCK` stands, where there is a C compiler; CHAOS_CLOCK says whether."""
    compiler = shutil.which("cc")
    if "CHAOS_CLOCK" in os.environ or not compiler:
        return
    folder = Path(tempfile.mkdtemp(prefix="chaos-clock-"))
    (folder / "clock.c").write_text(CLOCK)
    (folder / "offset").write_bytes(bytes(8))
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, folder / "clock.c", "-ldl"], check=True)
    os.environ |= {"CHAOS_CLOCK": str(folder / "offset"), "LD_PRELOAD": str(library)}
    os.execv(sys.executable, [sys.executable, *sys.argv])


def told(paths: Paths) -> dict[str, list[tuple[Any, ...]]]:
    """What real trials must say to the bit, whatever happened to them."""
    results = [result for _, result in iterate_results(paths) if isinstance(result, TrialResult)]
    return {
        "told": [
            (
                result.config.key,
                [(score.task, score.value) for score in result.scores],
                [(point.step, point.tokens, point.loss, point.score) for point in result.curve],
                (result.cost.tokens, result.cost.flops),
            )
            for result in results
        ]
    }


def tables(paths: Paths) -> dict[str, list[tuple[Any, ...]]]:
    """The database's tables, without the columns that may differ."""
    if "CHAOS_REAL" in os.environ:
        return told(paths) | {"damaged": []}
    with connect(paths) as connection:
        return {name: rows_of(connection, name, columns) for name, columns in compared_columns(connection).items()}


def judge(scene: Scene, reference: dict[str, list[tuple[Any, ...]]], keys: set[str], code: int | None) -> Counter[str]:
    """What is wrong with what a cycle left."""
    found: Counter[str] = Counter()
    found["stuck"] = int(code != 0)
    results = [result for _, result in iterate_results(scene.paths)]
    found["unreadable"] = sum(isinstance(result, StorageError) for result in results)
    records = {result.config.key: result for result in results if isinstance(result, TrialResult)}
    found["lost"] = len(keys - records.keys())
    found["blamed"] = sum(result.status != TrialStatus.COMPLETE for result in records.values())
    done = Counter(scene.lines("done"))
    found["doubled"] = sum(count > 1 and key not in scene.torn for key, count in done.items())
    try:
        members = {member.key for member in read_members(scene.paths, SPEC.name)}
        found["lost"] += len(keys - members)
        if code == 0:
            own = tables(scene.paths)
            damaged = len(own.pop("damaged"))
            found["other"] = sum(rows != reference[name] for name, rows in own.items()) + (damaged > len(scene.torn))
    except StorageError as error:
        print(error)
        found["unreadable"] += 1
    return +found


@contextlib.contextmanager
def cycle(root: Path, name: str, rng: random.Random) -> Iterator[Scene]:
    """A scene that leaves no process behind."""
    scene = Scene(root / name, rng)
    try:
        yield scene
    finally:
        scene.stop_all()


def chaos(faults: int, seed: int, kinds: Sequence[str], root: Path) -> Counter[str]:
    """Let so many faults befall the study, and print what came of it.

    Returns:
        What is wrong, counted; empty where nothing is.
    """
    rng, wrong, met, number = random.Random(seed), Counter[str](), Counter[str](), 0
    with cycle(root, "undisturbed", rng) as scene:
        assert scene.end(scene.start()) == 0, (scene.folder / "log").read_text()
        reference = tables(scene.paths)
    keys = {member.key for member in read_members(scene.paths, SPEC.name)}
    while met.total() < faults:
        number += 1
        planned = [rng.choice(kinds) for _ in range(rng.randint(1, 6))]
        if "CHAOS_CLOCK" in os.environ:
            set_clock(0)
        with cycle(root, f"{number:04}", rng) as scene:
            scene.take_plan(root / "undisturbed")
            for kind in planned:
                met[kind] += FAULTS[kind](scene)
            found = judge(scene, reference, keys, scene.end(scene.start()))
        wrong += found
        if found:
            print(f"cycle {number} ({', '.join(planned)}): {dict(found)}, see {scene.folder}", flush=True)
        else:
            shutil.rmtree(scene.folder)
        if number % 50 == 0:
            print(f"{met.total()} faults so far", flush=True)
    print(f"{met.total()} faults in {number} cycles of {len(keys)} trials: {dict(sorted(met.items()))}")
    print(", ".join(f"{wrong[what]} {what}" for what in ("lost", "doubled", "blamed", "unreadable", "stuck", "other")))
    return wrong


def main() -> None:
    """Print what was wrong; exit code 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(FAULTS))
    parser.add_argument("--disk", type=Path, help="an empty file system of a hundred megabytes or so")
    parser.add_argument("--real", action="store_true", help="trials of the smallest embedded model; seconds each")
    chosen = parser.parse_args()
    with_clock()
    if chosen.real:
        os.environ["CHAOS_REAL"] = "1"
    wanting = {"full-disk": chosen.disk, "clock": "CHAOS_CLOCK" in os.environ, "torn-checkpoint": chosen.real}
    worth = [kind for kind in FAULTS if wanting.get(kind, True)]
    # with real trials, what a worker meets is the point: drivers and the database do the same with any
    kinds = chosen.kinds or [
        kind for kind in worth if not chosen.real or ("driver" not in kind and "ingester" not in kind)
    ]
    prepare()
    root = Path(tempfile.mkdtemp(prefix="chaos-", dir=chosen.disk))
    cpu = time.process_time()
    wrong = chaos(chosen.faults, chosen.seed, kinds, root)
    times = os.times()
    print(f"{time.process_time() - cpu + times.children_user + times.children_system:.0f} s of CPU")
    if not wrong:
        shutil.rmtree(root)
    sys.exit(bool(wrong))


def prepare() -> None:
    """Make this process the one that all others are forks of, and that collects the dead."""
    sys.path.insert(0, str(HERE))
    sys.modules.setdefault("chaos", sys.modules[__name__])
    use_project(HERE)
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    real = ("torch", "transformers", "peft", "lm_eval.api.task", "harness.trial.group", "harness.training.together")
    for name in (
        "duckdb",
        "optuna",
        "pandas",
        "harness.analysis.power",
        "scipy.optimize",
        *(real if "CHAOS_REAL" in os.environ else ()),
    ):
        importlib.import_module(name)


if __name__ == "__main__":
    main()
