"""How long planning a study of many rows takes, beside `datasets` and the tokenizer's own batch encoding of the same rows.

Run: python benchmarks/planning.py [--rows 100000] [--model MODEL] [--kind choices|generated] [--profile]
The rows are a CSV file of short texts with labels. The plan reads it, renders every row, proves what it teaches and counts what will be
cut; the baseline reads the same file with `datasets` and encodes prompts with answers in one batch, once.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import os
import pstats
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import yaml

from harness.driver.experiment import Experiment, Site
from harness.driver.plan import plan_study
from harness.driver.resolve import resolve
from harness.records.paths import Paths
from harness.study.spec import StudySpec

WORDS = (
    "the a film plot was is of and slow warm funny dull story about people who never really leave home again".split()
)
LABELS = ("negative", "positive")
KINDS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_choice": list(LABELS),
        "metric_list": [{"metric": "acc"}],
    },
    "generated": {
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def write(folder: Path, rows: int, kind: str) -> None:
    """A task `reviews` of so many training rows, and 1,000 rows for each other split."""
    draw = random.Random(0)
    for name, count in (("train", rows), ("validation", 1000), ("test", 1000)):
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["text", "label"])
            for number in range(count):
                text = " ".join(draw.choices(WORDS, k=draw.randint(15, 45)))
                table.writerow([f"{name} {number}: {text}", LABELS[number % 2]])
    files = {name: f"{name}.csv" for name in ("train", "validation", "test")}
    task = {"dataset_path": "csv", "dataset_kwargs": {"data_files": files}, "training_split": "train"}
    task |= {"validation_split": "validation", "test_split": "test"}
    task |= {"doc_to_text": "Review: {{text}}\nVerdict:", "doc_to_target": "{{label}}"} | KINDS[kind]
    (folder / "reviews.yaml").write_text(yaml.safe_dump(task))


def study(model: str) -> StudySpec:
    """Two families on the task."""
    return StudySpec.model_validate(
        {
            "name": "planned",
            "question": "How long does planning take?",
            "base_models": [model],
            "tasks": ["reviews"],
            "families": {"lora": {"method": "lora"}, "full": {"method": "full"}},
            "budget": {"trials": 2, "steps": 100},
        }
    )


def baseline(folder: Path, model: str) -> None:
    """Read with `datasets`, and encode prompts with answers in batches."""
    from datasets import Dataset, disable_progress_bars

    from harness.models.base_model import load_tokenizer, resolve_model

    disable_progress_bars()
    tokenizer = load_tokenizer(resolve_model(model))
    rows = Dataset.from_csv(str(folder / "train.csv"), cache_dir=str(folder / "cache"))
    rows.map(
        lambda batch: tokenizer(
            [f"Review: {text}\nVerdict: {label}" for text, label in zip(batch["text"], batch["label"], strict=True)]
        ),
        batched=True,
    )


def main() -> None:
    """Print the plan's CPU seconds and the baseline's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", default="tiny-1m")
    parser.add_argument("--kind", choices=KINDS, default="choices")
    parser.add_argument("--profile", action="store_true", help="print where the plan's time goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, arguments.rows, arguments.kind)
        import datasets  # noqa: F401  imports are no part of either
        import lm_eval.api.task  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401

        site = Site(paths=Paths(folder / "results"), task_folders=(folder,), runner="inline", device="cpu")
        start = time.process_time()
        baseline(folder, arguments.model)
        theirs = time.process_time() - start

        def plan() -> Experiment:
            experiment = resolve(study(arguments.model), site)
            plan_study(experiment)
            return experiment

        profile, start = cProfile.Profile(), time.process_time()
        profile.runcall(plan) if arguments.profile else plan()
        ours = time.process_time() - start
    if arguments.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats("harness", 60)
    print(
        f"{arguments.rows:,} rows ({arguments.kind}): planned in {ours:.1f} s of CPU time; read and encoded once by datasets and "
        f"the tokenizer in {theirs:.1f} s ({ours / theirs:.1f} times)"
    )


if __name__ == "__main__":
    main()
