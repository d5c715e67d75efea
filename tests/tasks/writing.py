"""Writes small task files for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROWS = [{"text": f"word{i} and more", "label": ["no", "yes"][i % 2]} for i in range(40)]

CHOICE: dict[str, Any] = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
    "training_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Text: {{text}}\nAnswer:",
    "doc_to_target": "label",
    "doc_to_choice": ["no", "yes"],
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
GENERATE = CHOICE | {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
ROLLING = CHOICE | {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "doc_to_choice": None,
    "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_task(
    folder: Path,
    config: dict[str, Any],
    train: list[dict[str, Any]] = ROWS[:30],
    test: list[dict[str, Any]] = ROWS[30:],
    name: str = "mine",
) -> Path:
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "test.jsonl", test)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def write_splits(folder: Path, config: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """A task `mine` with these rows in each of its splits, the scored ones with other texts."""
    rows = [{"text": f"row {i}"} | row for i, row in enumerate(rows)]
    path = write_task(folder, config, train=rows, test=[row | {"text": f"{row['text']} again"} for row in rows])
    write_rows(folder / "more.jsonl", [row | {"text": f"{row['text']} once more"} for row in rows])
    files = {"data_files": {"train": "train.jsonl", "more": "more.jsonl", "test": "test.jsonl"}}
    keys = config | {"dataset_kwargs": files, "validation_split": "more"}
    path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
    return path
