"""Does every method of the catalogue learn? Best of equally many trials of each, beside full tuning's, on one task.

    python benchmarks/catalogue.py run --folder FOLDER
    python benchmarks/catalogue.py table --folder FOLDER > benchmarks/catalogue.md

`run` searches one family per method with equal budgets, and may be stopped and called again: what has a record is not
run twice. `table` prints what the records say: each method's best validation score, the share of full tuning's gain
that it reaches, the settings that reached it, and what a trial takes alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from harness.driver.experiment import Site
from harness.driver.resolve import resolve
from harness.errors import SpecError
from harness.plugins import load, names
from harness.records.codec import fingerprint
from harness.records.paths import Paths
from harness.records.results import iterate_results
from harness.records.trial import TrialResult
from harness.space import Text
from harness.study.load import load_study
from harness.tasks.task import task_folders

TASK, MODEL, STEPS, TRIALS, LIMIT = "tb_sort", "tiny-1m", 200, 12, 200
SOURCES = "tb_sort, tb_instruct"
REFERENCE = "full"


@dataclass(frozen=True)
class Line:
    """What a method's trials came to."""

    method: str
    best: TrialResult
    score: float
    trials: int
    failed: int
    seconds: float
    """Median wall seconds of training, as alone."""

    def text(self, base: float, gain: float) -> str:
        """A row of the table."""
        space, stage = load("methods", self.method).space, self.best.config.pipeline.stages[0]
        shown = ", ".join(
            f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in stage.params.items()
            if name in space and (space[name].searched or value != space[name].default)
        )
        share = (self.score - base) / gain
        cells = [f"`{self.method}`", f"{self.score:.3f}", f"{share:.0%}" + ("" if share >= 0.5 else " **below half**")]
        cells += [
            f"{self.best.cost.trainable_params:,}",
            f"{self.seconds:.1f}",
            str(self.trials),
            str(self.failed),
            shown,
        ]
        return f"| {' | '.join(cells)} |"


def family(method: str) -> dict[str, object]:
    """The method in its own space; where it asks for tasks to train adapters on first, this one and another."""
    named = {name: SOURCES for name, values in load("methods", method).space.items() if isinstance(values, Text)}
    return {"method": method} | ({"params": named} if named else {})


def study(methods: list[str]) -> dict[str, object]:
    """One family per method, every one with the same budget."""
    return {
        "name": f"catalogue_{fingerprint(methods)[:6]}",
        "question": "Does every method learn?",
        "base_models": [MODEL],
        "tasks": [TASK],
        "families": {name: family(name) for name in methods},
        "budget": {"trials": TRIALS, "steps": STEPS},
        "search": {"sampler": "tpe", "limit": LIMIT, "off_target": False, "fractions": [1.0]},
        "seed": 1,
    }


def usable() -> list[str]:
    """The methods that train something, full tuning first."""
    found = [name for name in names("methods") if load("methods", name).needs_training and name != REFERENCE]
    return [REFERENCE, *found]


def run(folder: Path, methods: list[str]) -> None:
    """Score the base, then search all methods that can work here as one study."""
    (folder / "studies").mkdir(parents=True, exist_ok=True)
    able = [name for name in methods if not refused(folder, name)]
    path = write(folder, able)
    for verb in ("base", "search"):
        command = [sys.executable, "-m", "harness.cli", "--root", str(folder), verb, str(path)]
        done = subprocess.run(command, check=False)
        print(f"{verb}: exit {done.returncode}", file=sys.stderr)


def refused(folder: Path, method: str) -> bool:
    """Whether planning refuses a method here; the reason is kept for the table."""
    site = Site(paths=Paths(folder / "results"), task_folders=task_folders(folder))
    reason = folder / f"{method}.refused"
    reason.unlink(missing_ok=True)
    try:
        resolve(load_study(write(folder, [method])), site)
    except SpecError as error:
        reason.write_text(str(error))
        return True
    return False


def write(folder: Path, methods: list[str]) -> Path:
    """A study file of these methods."""
    content = study(methods)
    path = folder / "studies" / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def lines(folder: Path) -> dict[str, Line]:
    """By method, what its trials came to."""
    trials: dict[str, list[TrialResult]] = {}
    for _, result in iterate_results(Paths(folder / "results")):
        if isinstance(result, TrialResult) and result.config.task.name == TASK:
            trials.setdefault(result.config.pipeline.stages[0].method, []).append(result)
    return {method: line for method, results in trials.items() if (line := _line(method, results))}


def _line(method: str, results: list[TrialResult]) -> Line | None:
    scored = sorted((r.target.value, r.config.key, r) for r in results if r.target is not None)
    if not scored:
        return None
    seconds = sorted(
        r.cost.solo_equivalent_s or r.cost.seconds.get("train", 0.0) for r in results if r.status.has_scores
    )
    return Line(
        method, scored[-1][2], scored[-1][0], len(results), len(results) - len(scored), seconds[len(seconds) // 2]
    )


def table(folder: Path) -> str:
    """The page."""
    found = lines(folder)
    if not {REFERENCE, "none"} <= set(found):
        sys.exit("the base and full tuning must have records for a table, but have none: run first")
    base = found["none"].score
    gain = found[REFERENCE].score - base
    head = [
        f"Base `{MODEL}`, task `{TASK}` (base score {base:.3f}), {TRIALS} trials of {STEPS} steps of 16 rows per method, "
        f"TPE, best score on {LIMIT} validation items. Seconds: training of one trial alone, one thread, median. "
        f"Methods that mix adapters of other tasks first train one each on {SOURCES.replace(', ', ' and ')}, beyond that budget.",
        "",
        "| method | best | share of full tuning's gain | trained parameters | seconds | trials | failed | best settings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [
        found[name].text(base, gain) for name in sorted(found, key=lambda name: -found[name].score) if name != "none"
    ]
    refused = [f"`{path.stem}`: {path.read_text()}" for path in sorted(folder.glob("*.refused"))]
    return "\n".join([*head, *rows, "", *refused])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["run", "table"])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--methods", default="", help="comma-separated; all if left out")
    given = parser.parse_args()
    if given.verb == "run":
        run(given.folder, given.methods.split(",") if given.methods else usable())
    else:
        print(table(given.folder))


if __name__ == "__main__":
    main()
