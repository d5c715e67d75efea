"""What happens to a user whose files are damaged: thousands of mutated files, each through commands that read it.

Run: python benchmarks/mutated_files.py [--count 10000] [--first 0] [--seed 0] [--kinds record,task] [--show]
The goal is that every file is either taken or refused with one sentence and the right exit code: no traceback, no command
above 5 s, no file lost, no code of the input run, no question asked. A case follows from the seed and its number alone,
so `--first 1234 --count 1 --show` repeats one.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import mutations  # noqa: E402
import yaml  # noqa: E402

LIMIT_S = 5
"""CPU seconds of a command: a busy machine takes longer."""
STUCK_S = 300
"""Wall seconds after which a command that waits, or that no signal reaches, is ended with its process."""
SENTENCE = 1500
"""Longest message that still counts as a sentence."""
MEMORY_BYTES = 24 << 30
"""Address space, so that a size that nobody checked ends as an error instead of taking the machine along."""
Change = Callable[[bytes, random.Random], tuple[bytes, str]]


@dataclass(frozen=True)
class Kind:
    """Files of one kind: where they are, how they go wrong, which commands read them, and how those may refuse them."""

    files: str
    """Pattern below the project's folder."""
    changes: tuple[Change, ...]
    commands: tuple[str, ...]
    codes: tuple[int, ...] = (3,)
    """Exit codes of a refusal; none: any."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    number: int
    kind: str
    file: str
    how: str
    command: str
    result: str
    """`taken`, `refused`, `failed` (a trial that ended without a score), or what is wrong."""
    said: str = ""
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether this must not happen."""
        return self.result not in ("taken", "refused", "failed")


def signed(raw: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A record with one wrong value or key, and the digest that it must have all the same."""
    from harness.records.codec import fingerprint

    record, how = mutations.changed_tree(json.loads(raw), rng)
    with contextlib.suppress(ValueError, AttributeError, TypeError):  # what no digest can be taken of goes as it is
        record.pop("digest", None)
        record["digest"] = fingerprint(record)
    return mutations.json_of(record), f"{how}, signed"


BYTES, TEXT = mutations.changed_bytes, mutations.changed_text
YAML = (TEXT, BYTES, mutations.changed_yaml, mutations.changed_yaml)
JSON = (BYTES, TEXT, mutations.changed_json, mutations.changed_json)
LINES = (BYTES, TEXT, mutations.changed_lines, mutations.changed_lines)
TASKS = ("colour", "echo", "text", "manners", "table", "columns", "sampled")
TRIAL = "train --task colour --pipeline pipeline.yaml --output out"
READ = (
    *("database", "status", "plan s", "phase base", "phase search", "phase confirm", "recommend --task colour --model tiny-1m") * 3,
    "report made_up", "report s", "backtest", "export out", "import elsewhere/results",
)  # fmt: skip
KINDS = {
    "study": Kind("studies/s.yaml", YAML, ("plan s", "plan s", "plan s", "list studies")),
    "recipe": Kind("studies/recipes/two.yaml", YAML, ("plan s",)),
    "task": Kind("studies/tasks/*.yaml", YAML, ("plan {own}", "plan {own}", "plan also_{own}", "recommend --task {own} --model tiny-1m"), (3, 5)),
    "rows in JSONL": Kind("studies/tasks/*.jsonl", LINES, ("plan {own}",)),
    "rows in CSV": Kind("studies/tasks/*.csv", (BYTES, TEXT), ("plan table",)),
    "rows in Parquet": Kind("studies/tasks/*.parquet", (BYTES, mutations.changed_table), ("plan columns",)),
    "corpus": Kind("corpus.jsonl", LINES, ("plan colour",)),
    "config": Kind("model/*config.json", JSON, (*["plan colour"] * 5, TRIAL), (3, 4)),
    "tokenizer": Kind("model/tokenizer*.json", JSON, (*["plan colour"] * 5, TRIAL), (3, 4)),
    "safetensors": Kind("model/*.safetensors", (BYTES, mutations.changed_header), (*["plan colour"] * 5, TRIAL), (3, 4)),
    "record": Kind("results/trials/*/*/record.json", (BYTES, mutations.changed_json, signed, signed), READ, (3, 4, 5)),
    "items": Kind("results/trials/*/*/items.parquet", (BYTES, mutations.changed_table), READ, (3, 4, 5)),
    "study's lines": Kind("results/studies/*/*.jsonl", LINES, READ, (3, 4, 5)),
    "study's facts": Kind("results/studies/*/*.json", JSON, READ, (3, 4, 5)),
    "database": Kind("results/*.duckdb", (BYTES,), READ, (3, 4, 5)),
    "cache": Kind("results/cache/*.json", JSON, READ, (3, 4, 5)),
    "backtest": Kind("results/*.json", JSON, READ, (3, 4, 5)),
    "plug-in": Kind("plugins/*/*.py", (BYTES, TEXT), ("list methods", "plan s", "plan s", "list sections", "report s"), (2, 3)),
    "pipeline": Kind("pipeline.yaml", YAML, ("train --task colour --pipeline pipeline.yaml --dry-run",)),
    "arguments": Kind("", (), ()),
}  # fmt: skip
ARGUMENTS = """plan s|recommend --task colour --top 1|recommend --task colour --max-seconds 5 --max-memory-gb 1|status s|list
methods|report s|train --task colour --pipeline pipeline.yaml --seed 1 --output out --dry-run|export out --format csv|import
elsewhere|plan s --runner local --runner-option workers=2|export o.db --format optuna --study s|schema task|backtest
--json|--root . status|plan s --runner slurm --runner-option partition=gpu|database --schema""".replace(
    "\n", " "
).split("|")

STUDY: dict[str, Any] = {
    "name": "s", "question": "Which?", "base_models": [{"name": "./model", "corpus": "corpus.jsonl"}],
    "tasks": ["colour"], "off_target": ["text"],
    "families": {
        "a": {"method": "lora", "params": {"rank": 2, "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}},
        "b": {"method": "mine", "retention": "replay", "params": {"replay_share": 0.5}},
        "c": {"recipe": "two", "params": {"0.learning_rate": 1e-3}, "data": {0: "text"}},
        "d": {"stages": [{"method": "full", "share": 0.5}, {"method": "ia3", "curation": "subset", "share": 0.5}]},
    },
    "budget": {"trials": 2, "steps": 4},
    "search": {"sampler": "random", "limit": 4, "fractions": [0.5, 1.0], "give_up": 0.05},
    "confirm": {"finalists": 1, "seeds": 2, "limit": 4}, "prices": {"cpu_hour": 0.1, "gpu_hour": {"default": 1.0}}, "seed": 1,
}  # fmt: skip
METHOD = '''"""A method of the project's own."""

from harness.methods.full import FullFineTuning


class Mine(FullFineTuning):
    """Full tuning under another name."""

    summary = "mine"
'''
SECTION = '''"""A section of the project's own."""

from harness.report.sections.base import Section


class Mine(Section):
    """One sentence."""

    summary = "mine"
    title = "Mine"
    order = 99
    nothing = "Nothing."

    def render(self, study):
        """Its name."""
        return None
'''


def build(folder: Path) -> None:
    """A project with one file of every kind, in which two studies were run: one of fabricated records, one by stand-in trials."""
    from tests.fabricate import fabricate, study_spec
    from tests.tiny import save_llama, save_tasks

    for name in ("model", "studies/tasks", "studies/recipes", "plugins/methods", "plugins/sections", "elsewhere"):
        (folder / name).mkdir(parents=True)
    save_llama(folder / "model", width=16)
    tasks = save_tasks(folder / "studies" / "tasks")
    other_formats(tasks)
    rows = [json.loads(line) for line in (tasks / "train.jsonl").read_text().splitlines()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in rows))
    (folder / "studies" / "s.yaml").write_bytes(mutations.yaml_of(STUDY))
    for task in TASKS:  # alone, since planning all takes longer
        own = STUDY | {"name": task, "tasks": [task], "off_target": [], "families": {"a": {"method": "lora"}}}
        (folder / "studies" / f"{task}.yaml").write_bytes(mutations.yaml_of(own))
        also = own | {"name": f"also_{task}", "tasks": ["colour" if task != "colour" else "echo"], "off_target": [task]}
        (folder / "studies" / f"also_{task}.yaml").write_bytes(mutations.yaml_of(also))
    stages = [{"method": "lora", "objective": "continued_pretraining"}, {"method": "lora"}]
    recipe = {"summary": "two stages", "paper": "", "stages": stages}
    (folder / "studies" / "recipes" / "two.yaml").write_bytes(mutations.yaml_of(recipe))
    pipeline = {"model": "./model", "steps": 1, "method": "lora", "params": {"rank": 2, "batch_size": 2}}
    (folder / "pipeline.yaml").write_bytes(mutations.yaml_of(pipeline))
    (folder / "plugins" / "methods" / "mine.py").write_text(METHOD)
    (folder / "plugins" / "sections" / "mine.py").write_text(SECTION)
    for place in (folder / "model", tasks, folder):  # what an input might have run
        (place / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\ndef f(*a): return ''\nEvil = f\n")
    made = fabricate(paths(folder), study_spec(tasks=2, trials=3, seeds=2), items=2)
    spec = made.study.model_dump(mode="json", exclude_none=True)
    (folder / "studies" / "made_up.yaml").write_bytes(mutations.yaml_of(spec))
    with contextlib.chdir(folder):
        for command in ("list studies", "phase base", "phase search", "phase confirm", "database", "backtest"):
            run(command)
        for command in ("report s", TRIAL):  # what they import is not to count
            run(command)
            shutil.rmtree("out", ignore_errors=True)
    shutil.rmtree(folder / "reports")
    shutil.copytree(folder / "results", folder / "elsewhere" / "results")


def other_formats(tasks: Path) -> None:
    """The task `colour` as a table of commas, and in columns, and `echo` with answers that are sampled."""
    import pandas as pd

    colour, echo = (yaml.safe_load((tasks / f"{name}.yaml").read_text()) for name in ("colour", "echo"))
    drawn = echo["generation_kwargs"] | {"do_sample": True, "temperature": 0.5, "top_k": 5}
    sampled = echo | {"task": "sampled", "repeats": 2, "generation_kwargs": drawn}
    (tasks / "sampled.yaml").write_bytes(mutations.yaml_of(sampled))
    for name, kind in (("table", "csv"), ("columns", "parquet")):
        for split in ("train", "validation", "test"):
            rows = pd.read_json(tasks / f"{split}.jsonl", lines=True)
            rows.to_csv(tasks / f"{split}.csv", index=False)
            rows.to_parquet(tasks / f"{split}.parquet", index=False)
        files = {split: f"{split}.{kind}" for split in ("train", "validation", "test")}
        changes = {"task": name, "dataset_path": kind, "dataset_kwargs": {"data_files": files}}
        (tasks / f"{name}.yaml").write_bytes(mutations.yaml_of(colour | changes))


def paths(folder: Path) -> Any:
    """Where the project's results lie."""
    from harness.records.paths import Paths

    return Paths(folder / "results", folder / "reports")


def run(command: str | list[str], find_plugins: bool = True) -> None:
    """Do in this process what a user's command does in its own; phases run stand-in trials.

    Args:
        command: The command, or its words.
        find_plugins: Whether plug-ins may have changed; finding them anew takes longer than most commands.
    """
    import harness.cli.main as cli
    from harness.cli.terminal import Commands
    from harness.plugins import use_project

    vars(cli)["use_project"] = use_project if find_plugins else lambda root: None
    words = command if isinstance(command, list) else command.split()
    if words[0] == "phase":
        Commands("phase", callback=partial(phase, words[1]), invoke_without_command=True).main([])
    else:
        cli.main.main(words)


def phase(role: str) -> None:
    """One phase of the study, by the driver itself."""
    from harness.cli.main import _study
    from harness.driver.experiment import Site
    from harness.driver.phases import run_phase
    from harness.tasks.task import task_folders
    from tests.driver.standin import WORK

    root, results = Path(), paths(Path.cwd())
    site = Site(paths=results, task_folders=task_folders(root), runner="inline", device="cpu", display=False, work=WORK)
    summary = run_phase(role, _study(root, "s"), site)  # type: ignore[arg-type]
    if summary.exit_code:
        sys.exit(summary.exit_code)


class TooLongError(BaseException):
    """The command took more than `LIMIT_S`; no handler of the harness catches it."""


def _too_long(*_: object) -> None:
    raise TooLongError


class Silent(io.StringIO):
    """A standard input that nobody may read."""

    asked = False

    def readline(self, *_: Any) -> str:
        """Note the question."""
        self.asked = True
        return "y\n"

    read = readline


def outcome_of(command: str | list[str], find_plugins: bool = True) -> tuple[str, int, str, float, bool]:
    """How a command ended (`done`, `traceback` or `slow`), its exit code, its last words, its seconds, and whether it asked."""
    said, asked, ended, code, start = io.StringIO(), Silent(), "done", 0, time.process_time()
    handlers = list(logging.getLogger("harness").handlers)
    stdin, sys.stdin = sys.stdin, asked
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    faulthandler.dump_traceback_later(STUCK_S, exit=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            run(command, find_plugins)
    except TooLongError:
        ended = "slow"
        said.write(traceback.format_exc())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        ended = "traceback"
        said.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        sys.stdin = stdin
        logging.getLogger("harness").handlers[:] = handlers
    return ended, code, said.getvalue(), time.process_time() - start, asked.asked


class Project:
    """A built project, which is brought back to what it was after each case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        build(folder)
        (folder / "ran").unlink(missing_ok=True)
        self.content = self.read()

    def read(self) -> dict[Path, bytes]:
        """All files with their content."""
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()}

    def restore(self) -> None:
        """Undo whatever a case did."""
        now = self.read()
        for path in self.folder.rglob("*"):
            if path.is_symlink() or (path.is_file() and path not in self.content):
                path.unlink()
        for path, raw in self.content.items():
            if now.get(path) != raw:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)

    @contextlib.contextmanager
    def without_results(self) -> Iterator[None]:
        """As if nothing had been run yet: planning reads all records."""
        results = self.folder / "results"
        results.rename(self.folder / "aside")
        yield
        shutil.rmtree(results, ignore_errors=True)
        (self.folder / "aside").rename(results)

    def lost(self, path: Path, raw: bytes) -> str:
        """What is no longer there of the user's files and of the records, the mutated file included; empty if nothing."""
        derived = ("harness.duckdb", "backtest.json", "plan.json", "tasks.json", "models.json", "study.json")
        aside = [kept.read_bytes() for kept in (self.folder / "results" / "quarantine").glob("*.json")]
        for file, content in (self.content | {path: raw}).items():
            if file.name.endswith((*derived, ".done", ".receipt.json")) or {"__pycache__", "cache"} & set(file.parts):
                continue
            now = file.read_bytes() if file.exists() else b""
            grows = file.suffix == ".jsonl" and now.startswith(content[: content.rfind(b"\n") + 1])
            if now != content and not grows and content not in aside:
                return str(file.relative_to(self.folder))
        return ""


FRESH = [name for name, kind in KINDS.items() if kind.files.startswith(("studies", "corpus", "model", "pipeline"))]
OFTEN = ["study", "task", "rows in JSONL", "record"]


def try_case(project: Project, number: int, seed: int, kinds: list[str]) -> Outcome:
    """One mutated file through one command that reads it."""
    rng = random.Random(f"{seed} {number}")
    name = rng.choice([*kinds, *[often for often in OFTEN if often in kinds] * 2])
    kind = KINDS[name]
    if name == "arguments":
        command: str | list[str] = rng.choice(ARGUMENTS).split()
        place = rng.randrange(len(command))
        command[place : place + rng.randrange(2)] = [rng.choice([*mutations.TEXTS, *mutations.NUMBERS])]  # type: ignore[index]
        path, raw, how = (
            project.folder / "studies" / "s.yaml",
            project.content[project.folder / "studies" / "s.yaml"],
            "argument",
        )
    else:
        path = rng.choice(sorted(path for path in project.content if path.match(str(project.folder / kind.files))))
        raw, how = rng.choice(kind.changes)(project.content[path], rng)
        own = path.stem.partition("_")[0]
        command = rng.choice(kind.commands).format(own=own if own in TASKS else rng.choice(["colour", "echo", "text"]))
        path.write_bytes(raw)
    with contextlib.chdir(project.folder), project.without_results() if name in FRESH else contextlib.nullcontext():
        ended, code, said, seconds, asked = outcome_of(command, find_plugins=name == "plug-in")
    result, sentence = judged(kind, ended, code, said)
    if asked:
        result = "asked a question"
    elif (project.folder / "ran").exists():
        result = "ran code"
    elif lost := project.lost(path, raw):
        result, sentence = "lost", lost
    project.restore()
    if name == "plug-in":
        with contextlib.chdir(project.folder):
            run("list studies")  # the undamaged ones are found again
    shown = command if isinstance(command, str) else " ".join(command)[:200]
    return Outcome(
        number, name, str(path.relative_to(project.folder)), how[:200], shown, result, sentence, round(seconds, 2)
    )


def judged(kind: Kind, ended: str, code: int, said: str) -> tuple[str, str]:
    """What an end comes to, and what it said."""
    last = said[said.rfind("harness: ") :].rstrip("\n") if "harness: " in said else ""
    if ended != "done":
        return ended, said[-3000:]
    if code == 0:
        return "taken", ""
    if code == 4 and not last:
        return "failed", said[-300:]
    if "\n" in last or not last or len(last) > SENTENCE:
        return "not one sentence", last[:3000] or said[-1000:]
    if kind.files and code not in kind.codes:
        return f"exit code {code}", last
    return "refused", last


def cases(folder: Path, numbers: range, seed: int, kinds: list[str]) -> Iterator[Outcome | None]:
    """None when the project is built, then the outcomes of some cases, in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, _too_long)
    project = Project(folder)
    yield None
    for number in numbers:
        yield try_case(project, number, seed, kinds)


def guarded(arguments: argparse.Namespace) -> Iterator[Outcome]:
    """The outcomes of all cases, in processes that may be ended from outside."""
    number, stop = arguments.first, arguments.first + arguments.count
    while number < stop:
        command = [sys.executable, __file__, "--worker", f"--first={number}", f"--count={stop - number}"]
        command += [f"--seed={arguments.seed}", f"--kinds={arguments.kinds}"]
        with tempfile.TemporaryFile("w+") as errors:
            worker = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True
            )
            lines = iter(worker.stdout or ())
            if not next(lines, ""):
                errors.seek(0)
                raise SystemExit(f"the project cannot be built: {errors.read()}")
            for line in lines:
                outcome = Outcome(**json.loads(line))
                number = outcome.number + 1
                yield outcome
            if worker.wait() and number < stop:
                errors.seek(0)
                yield Outcome(number, "?", "", "", "", "process ended", errors.read()[-3000:])
                number += 1


def table(outcomes: list[Outcome]) -> str:
    """How many cases of each kind ended how."""
    results = ["taken", "refused", "failed", *sorted({one.result for one in outcomes if one.wrong})]
    lines = [["files", "cases", *results]]
    for kind in [*sorted({one.kind for one in outcomes}), None]:
        own = [one for one in outcomes if kind in (one.kind, None)]
        counts = Counter(one.result for one in own)
        lines.append([kind or "all", str(len(own)), *(str(counts[result] or "") for result in results)])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Try the cases, print the table, and fail where one of them went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--show", action="store_true", help="print every case, not only those that went wrong")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    kinds = arguments.kinds.split(",") if arguments.kinds else list(KINDS)
    if arguments.worker:
        results, sys.stdout = sys.stdout, sys.stderr
        with tempfile.TemporaryDirectory() as folder:
            numbers = range(arguments.first, arguments.first + arguments.count)
            for outcome in cases(Path(folder).resolve(), numbers, arguments.seed, kinds):
                print(json.dumps(outcome and asdict(outcome)), file=results, flush=True)
        return 0
    outcomes = []
    for outcome in guarded(arguments):
        outcomes.append(outcome)
        if outcome.wrong or arguments.show:
            print(json.dumps(asdict(outcome), ensure_ascii=True), flush=True)
    print(table(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
