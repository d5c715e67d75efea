"""What the race is run on: reviews, two small base models, the peers' task files, and the harness's study of the same trials.

Everything is made from the folder that HARNESS_DATA names, so that a race needs no network.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2)
RANKS = (8, 2, 4, 16)
"""Eight trials are the rates at the first rank, 16 at the first two, 32 at all four."""
ALPHA, MAX_LENGTH = 16, 128
ROWS = {"train": 800, "validation": 200, "test": 200}
MODELS = ("stories260K", "5m")
PROMPT = "Review: {text}\nSentiment:"
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Trial:
    """One configuration of the sweep; what is not named here is the same for all."""

    rate: float
    rank: int
    seed: int = 0


def trials_of(count: int) -> list[Trial]:
    """The configurations of a race: up to eight, or a multiple of eight up to 32."""
    if count not in (*range(1, 8), 8, 16, 24, 32):
        raise SystemExit(f"--trials must be 1 to 8, 16, 24 or 32, but is {count}: choose one of them")
    points = [(rate, rank) for rank in RANKS for rate in RATES][:count]
    return [Trial(rate, rank, seed) for seed, (rate, rank) in enumerate(points)]


@dataclass(frozen=True)
class Data:
    """The race's files below one folder."""

    root: Path

    @property
    def rows(self) -> Path:
        """Folder whose only file is the training rows as prompt and completion, as `trl sft` wants it."""
        return self.root / "rows"

    @property
    def tasks(self) -> Path:
        """lm-eval tasks `race` (validation rows) and `race_test`."""
        return self.root / "tasks"

    def model(self, name: str) -> Path:
        """A base model's folder."""
        return self.root / "models" / name

    def split(self, name: str) -> Path:
        """Rows of a split with text and label."""
        return self.root / f"{name}.jsonl"


def prepare(root: Path, source: Path) -> Data:
    """Write everything below `root`, once.

    Args:
        root: Folder of the race.
        source: Shared data: `rotten_tomatoes/` and `checkpoints/stories260K/`.
    """
    data = Data(root.resolve() / "data")
    if (data.root / "done").exists():
        return data
    for folder in (data.rows, data.tasks):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source / "checkpoints" / "stories260K", data.model("stories260K"), dirs_exist_ok=True)
    for name in ROWS:
        _lines(data.split(name), _rows(source, name, data))
    examples = [json.loads(line) for line in data.split("train").read_text().splitlines()]
    pairs = ({"prompt": PROMPT.format(**row), "completion": " " + row["label"]} for row in examples)
    _lines(data.rows / "train.jsonl", pairs)
    for name, split in (("race", "validation"), ("race_test", "test")):
        files = {"validation": str(data.split(split))}
        config = _task(name) | {"dataset_kwargs": {"data_files": files}, "validation_split": "validation"}
        (data.tasks / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    _llama(data.model("5m"), [PROMPT.format(**row) + " " + row["label"] for row in _reviews(source, "train")])
    (data.root / "done").touch()
    return data


def _rows(source: Path, split: str, data: Data) -> Iterator[dict[str, str]]:
    """Rows in a fixed random order, with words dropped from the end until prompt, answer and two marks fit."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.model("stories260K"))
    for row in random.Random(0).sample(_reviews(source, split), ROWS[split]):
        words = row["text"].split(" ")
        while len(tokenizer(PROMPT.format(text=" ".join(words)) + " negative").input_ids) + 2 > MAX_LENGTH:
            words.pop()
        yield {"text": " ".join(words), "label": row["label"]}


def _reviews(source: Path, split: str) -> list[dict[str, str]]:
    with (source / "rotten_tomatoes" / f"{split}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _lines(path: Path, rows: Iterator[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _task(name: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "doc_to_text": PROMPT.replace("{text}", "{{text}}"),
        "doc_to_target": "label",
        "doc_to_choice": list(LABELS),
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _llama(folder: Path, texts: list[str]) -> None:
    """A Llama with 5M random weights and a vocabulary of 2,048 learned from the rows."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = list(marks.values())
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe, model_max_length=512, **marks).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def project(folder: Path, data: Data, model: str, count: int, changes: dict[str, Any] | None = None) -> Path:
    """A harness project with one study, `race`, that asks for a race's configurations.

    Args:
        folder: The project's folder.
        data: The race's files.
        model: A name of `MODELS`.
        count: Trials.
        changes: Keys of the study to set otherwise; `params` go to its only family.

    Returns:
        The study's file.
    """
    changes = dict(changes or {})
    asked = trials_of(count)
    rates, ranks = (list(dict.fromkeys(column)) for column in zip(*((t.rate, t.rank) for t in asked), strict=True))
    params = {
        "learning_rate": {"choices": rates},
        "rank": {"choices": ranks},
        "alpha": ALPHA,
        "batch_size": 8,
        "schedule": "linear",
        "warmup_share": 0.0,
        "max_length": MAX_LENGTH,
    }
    study = {
        "name": "race",
        "question": "Which learning rate and rank?",
        "base_models": [str(data.model(model))],
        "tasks": ["race"],
        "families": {"lora": {"method": "lora", "params": params | changes.pop("params", {})}},
        "budget": {"trials": count, "epochs": 1},
        "search": {"sampler": "random", "fractions": [1.0]},
    }
    tasks = folder / "studies" / "tasks"
    tasks.mkdir(parents=True)
    files = {name: str(data.split(name)) for name in ROWS}
    config = _task("race") | {"dataset_kwargs": {"data_files": files}}
    config |= {"training_split": "train", "validation_split": "validation", "test_split": "test"}
    (tasks / "race.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    path = folder / "studies" / "race.yaml"
    path.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return path
