"""Does what is planned run? Random combinations of choices, each planned and, where the plan takes it, trained for two steps.

Run: python benchmarks/combinations.py [--trials 100] [--seed 0] [--folder FOLDER]
A choice is drawn on each of the four axes, with parameters that are choices or names of tasks, for tasks of every kind and
a model of 100,000 weights. The goal: no trial ends for a reason that planning could have known, and none for one that nobody
foresaw.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import yaml

from harness.driver.experiment import Site
from harness.driver.resolve import resolve
from harness.driver.trials import search_cells
from harness.errors import SpecError
from harness.plugins import AXIS_FOLDER, names
from harness.records.paths import Paths
from harness.records.trial import TrialStatus
from harness.space import Choice, Text
from harness.study.family import stage_space
from harness.study.spec import StudySpec
from harness.trial.group import Workspace, run_trial
from harness.trial.process import WarmProcess
from tests.tiny import save_llama, save_tasks

TASKS = ("colour", "echo", "text", "manners")
TEXTS = {"style_prompt": "Be kind. ", "negative_tag": "[wrong] ", "internal_template": "Think of colours. "}
SMALL: dict[str, Any] = {
    "batch_size": 2,
    "max_length": 64,
    "completion_tokens": 4,
    "generations": 2,
    "judged": 4,
    "rounds": 1,
}
"""What a tiny machine wants, where a choice has the parameter."""


def build(folder: Path) -> None:
    """A model with a corpus, and the tasks, in which answers are worth something where that can be said."""
    for name in ("model", "tasks"):
        (folder / name).mkdir()
    save_llama(folder / "model", width=32)
    save_tasks(folder / "tasks")
    for name in ("colour", "echo", "manners"):
        path = folder / "tasks" / f"{name}.yaml"
        task = yaml.safe_load(path.read_text())
        task["metadata"]["reward"] = "exact_match"
        path.write_text(yaml.safe_dump(task))
    lines = [f'{{"text": "Number {n} is a number that follows {n - 1}."}}\n' for n in range(30)]
    (folder / "corpus.jsonl").write_text("".join(lines))


def draw(rng: random.Random, folder: Path) -> StudySpec:
    """A study of one family with random choices and parameters."""
    choices = {axis: rng.choice(names(kind)) for axis, kind in AXIS_FOLDER.items()}
    # Most methods go with most things: the other axes are where choices meet.
    if rng.random() < 0.5:
        choices["method"] = rng.choice(["full", "lora", "ia3", "prefix_tuning", "qlora", "bitfit"])
    params: dict[str, Any] = {}
    for name, distribution in stage_space(choices).items():
        if name in SMALL and distribution.contains(SMALL[name]):
            params[name] = SMALL[name]
        elif isinstance(distribution, Choice) and rng.random() < 0.5:
            params[name] = rng.choice(distribution.choices)
        elif isinstance(distribution, Text) and distribution.names == "tasks" and rng.random() < 0.7:
            params[name] = rng.choice(TASKS)
        elif name in TEXTS and rng.random() < 0.8:
            params[name] = TEXTS[name]
    stage = choices | {"params": params} | ({"data": rng.choice(TASKS)} if rng.random() < 0.1 else {})
    return StudySpec.model_validate(
        {
            "name": "drawn",
            "question": "Does it run?",
            "base_models": [
                {"name": str(folder / "model")}
                | ({"corpus": str(folder / "corpus.jsonl")} if rng.random() < 0.8 else {})
            ],
            "tasks": [rng.choice(TASKS)],
            "families": {"one": stage},
            "budget": {"trials": 1, "steps": 2},
            "search": {"sampler": "random", "limit": 4, "fractions": [1.0]},
        }
    )


def in_words(study: StudySpec) -> str:
    """The combination, for people."""
    (stage,) = study.families["one"].stages
    params = {name: value for name, value in stage.params.items() if name not in SMALL}
    corpus = "" if study.base_models[0].corpus else ", no corpus"
    data = f", rows of {stage.data}" if stage.data else ""
    return (
        f"{study.tasks[0]}: {stage.method} {stage.objective} {stage.retention} {stage.curation} {params}{data}{corpus}"
    )


def main() -> int:
    """Draw, plan and train until enough combinations were trained; fail where one crashed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="print the refusals, too")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    process, number = WarmProcess(), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build(folder)
        site = Site(paths=Paths(folder / "results"), task_folders=(folder / "tasks",), runner="inline", device="cpu")
        while counts.total() - counts["refused"] < arguments.trials:
            number += 1
            study = draw(random.Random(f"{arguments.seed} {number}"), folder)
            try:
                experiment = resolve(study, site)
            except SpecError as error:
                counts["refused"] += 1
                if arguments.show:
                    print(f"{number} refused: {in_words(study)}: {error}", flush=True)
                continue
            (cell,) = search_cells(experiment, {})
            corpora = study.corpora
            workspace = Workspace(site.paths, site.task_folders, device="cpu", corpora=corpora)
            result = run_trial(cell.design.config({}, cell.design.top), workspace, process)
            counts[result.status.value] += 1
            if result.status != TrialStatus.COMPLETE:
                print(f"{number} {result.status}: {in_words(study)}: {result.reason}", flush=True)
    print(f"{number} combinations: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    return int(counts["crashed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
