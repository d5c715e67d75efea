"""Results of PEFT's method comparison: a folder of JSON files, one for each run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.foreign.sources._json import json_files, json_object
from harness.foreign.sources.base import Source

if TYPE_CHECKING:
    import pandas as pd


class PeftComparison(Source):
    """JSON files with `run_info`, `train_info` and `meta_info`, as `method_comparison` of PEFT writes them."""

    summary = "Results of PEFT's method comparison: a folder of JSON files."
    paper = "https://github.com/huggingface/peft/tree/main/method_comparison"
    mapping = {
        "source": "PEFT method comparison (Apache-2.0)",
        "task": "task",
        "base_model": "run_info.train_config.model_id",
        "method": "method",
        "params": {
            "learning_rate": "run_info.train_config.optimizer_kwargs.lr",
            "weight_decay": "run_info.train_config.optimizer_kwargs.weight_decay",
            "batch_size": "run_info.train_config.batch_size",
            "rank": "run_info.peft_config.r",
            "alpha": "run_info.peft_config.lora_alpha",
        },
        "steps": "run_info.train_config.max_steps",
        "seed": "run_info.train_config.seed",
        "status": {
            "column": "train_info.status",
            "map": {"success": "complete", "failed": "crashed", "canceled": "preempted"},
        },
        "scores": [
            {"column": "last.test accuracy", "metric": "accuracy", "higher_is_better": True, "low": 0, "high": 1},
            {
                "column": "last.forgetting",
                "metric": "loss_rise",
                "task": "plain text",
                "higher_is_better": False,
                "base": {"value": 0},
            },
        ],
        "costs": {
            "train_s": "train_info.train_time",
            "total_s": "run_info.total_time",
            "peak_memory_bytes": "train_info.accelerator_memory_max",
            "artifact_bytes": "train_info.file_size",
            "trainable_params": "train_info.num_trainable_params",
            "total_params": "train_info.num_total_params",
            "tokens": "last.train total tokens",
        },
        "model_facts": {"parameters": "train_info.num_total_params"},
        "hardware": "hardware",
        "started_at": "run_info.created_at",
    }

    def reads(self, path: Path) -> bool:
        """By the keys of its first JSON file.

        Args:
            path: An existing file or folder.
        """
        first = next(json_files(path), None)
        return first is not None and {"run_info", "train_info", "meta_info"} <= set(json_object(first))

    def table(self, path: Path) -> pd.DataFrame:
        """A row per file, with its last metrics under `last`.

        Args:
            path: A file or folder that it reads.
        """
        import pandas as pd

        return pd.json_normalize([_run(file) for file in json_files(path)])


def _run(path: Path) -> dict[str, Any]:
    run = json_object(path)
    training = run["train_info"] = {
        name.replace("cuda_memory", "accelerator_memory"): value for name, value in run.get("train_info", {}).items()
    }  # their name until 2025
    machine = run.get("meta_info", {}).get("system_info", {})
    config = run.get("run_info", {}).get("peft_config") or {}
    return {
        "run_info": run.get("run_info"),
        "train_info": training,
        "last": (training.get("metrics") or [{}])[-1],
        "method": str(config.get("peft_type") or "full").lower(),
        "task": next((p.name for p in path.resolve().parents if not p.name.endswith("results")), ""),
        "hardware": machine.get("accelerator") or machine.get("gpu"),
    }
