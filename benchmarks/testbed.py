"""Measure the embedded base models: what they know, what tuning adds, what it destroys and what replay gives back.

Run `python benchmarks/testbed.py base` for the skills of every base model, `python benchmarks/testbed.py tune` for the
learning-rate tables of the 1M model. Both print Markdown; harness/testbed/README.md holds the last results.
"""

import argparse
import json
import logging
import math
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, get_task_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from harness.testbed import DATA, MODELS, TASKS

SKILLS = ["tb_facts", "tb_addition", "tb_copy", "tb_reverse", "tb_stories"]
TUNED = ["tb_sentiment", "tb_sort", "tb_newfacts", "tb_instruct"]
LEARNING_RATES = [1e-4, 3e-4, 1e-3, 3e-3]
STEPS, BATCH = 200, 16


def load_tasks(names: list[str]) -> dict[str, Any]:
    """Load tasks with their data paths resolved against the folder of their YAML."""
    folder = Path(tempfile.mkdtemp())
    for name in names:
        config = yaml.safe_load((TASKS / f"{name}.yaml").read_text())
        files = config["dataset_kwargs"]["data_files"]
        config["dataset_kwargs"]["data_files"] = {k: str((TASKS / v).resolve()) for k, v in files.items()}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return dict(get_task_dict(names, TaskManager(include_path=str(folder), include_defaults=False)))


def load(name: str) -> tuple[Any, Any]:
    """Load a base model in float32 and its tokenizer."""
    folder = MODELS / name
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def scores(model: Any, tokenizer: Any, names: list[str], limit: int) -> dict[str, float]:
    """Return each task's metric on the first `limit` test items."""
    wrapped = HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=100)
    results = evaluate(wrapped, load_tasks(names), bootstrap_iters=0, limit=limit)["results"]
    keys = ("acc,none", "exact_match,none", "bits_per_byte,none")
    return {name: next(results[name][key] for key in keys if key in results[name]) for name in names}


def training_rows(name: str, tokenizer: Any) -> list[tuple[list[int], int]]:
    """Render a task's training split as token ids and the length of the prompt, which carries no loss."""
    task = load_tasks([name])[name]
    rows = []
    for doc in task.training_docs():
        prompt, target = task.doc_to_text(doc), task.config.target_delimiter + task.doc_to_target(doc)
        ids = tokenizer(prompt + target)["input_ids"] + [tokenizer.eos_token_id]
        rows.append((ids, len(tokenizer(prompt)["input_ids"])))
    return rows


def corpus_rows(tokenizer: Any) -> list[tuple[list[int], int]]:
    """Return rows of the pretraining distribution, with loss on every token."""
    texts = [json.loads(line)["text"] for line in (DATA / "corpus_sample.jsonl").read_text().splitlines()]
    return [(tokenizer(text)["input_ids"] + [tokenizer.eos_token_id], 0) for text in texts]


def batch_loss(model: Any, batch: list[tuple[list[int], int]]) -> torch.Tensor:
    """Return the mean loss over the supervised tokens of a batch."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [model.config.pad_token_id] * (width - len(row)) for row, _ in batch])
    labels = torch.tensor([[-100] * n + row[n:] + [-100] * (width - len(row)) for row, n in batch])
    return model(input_ids=ids, labels=labels).loss


def tune(name: str, rate: float, replay: float = 0.0, seed: int = 0) -> tuple[Any, Any]:
    """Tune every weight of the 1M model: AdamW, 10 warm-up steps, cosine; a share `replay` of rows from the corpus."""
    set_seed(seed)
    model, tokenizer = load("tiny-1m")
    rng, rows, old = random.Random(seed), training_rows(name, tokenizer), corpus_rows(tokenizer)
    supply = [row for _ in range(math.ceil(STEPS * BATCH / len(rows))) for row in rng.sample(rows, len(rows))]
    replayed = round(replay * BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        new = supply[step * BATCH : (step + 1) * BATCH - replayed]
        batch_loss(model, new + rng.sample(old, replayed)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, tokenizer


def line(head: str, values: dict[str, float]) -> str:
    """Return one Markdown table row."""
    return f"| {head} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |"


def main() -> None:
    """Print the table asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["base", "tune"])
    parser.add_argument("--limit", type=int, default=500, help="test items per task")
    parser.add_argument("--tasks", nargs="*", default=TUNED)
    parser.add_argument("--rates", nargs="*", type=float, default=LEARNING_RATES)
    parser.add_argument("--replay", nargs="*", type=float, default=[0.0])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if args.what == "base":
        print("| model | " + " | ".join(SKILLS + TUNED) + " |")
        for name in sorted(folder.name for folder in MODELS.iterdir()):
            print(line(name, scores(*load(name), SKILLS + TUNED, args.limit)), flush=True)
        return
    print("| task, rate, replay | task score | " + " | ".join(SKILLS) + " | seconds |")
    for name in args.tasks:
        for rate in args.rates:
            for replay in args.replay:
                started = time.monotonic()
                found = scores(*tune(name, rate, replay, args.seed), [name, *SKILLS], args.limit)
                seconds = {"seconds": time.monotonic() - started}
                print(line(f"{name}, {rate:g}, {replay:g}", found | seconds), flush=True)


if __name__ == "__main__":
    main()
