"""What `lm_eval --output_path` wrote: scores of finished models, a file for each evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.foreign.sources._json import json_files, json_object
from harness.foreign.sources.base import Source

if TYPE_CHECKING:
    import pandas as pd


class LmEval(Source):
    """`results_*.json` files. They do not say how a model was tuned: base_model, method and scores need a mapping file."""

    summary = "Results of lm_eval: how each model was tuned is for the mapping file to say."
    mapping = {"source": "lm_eval", "task": {"value": "unnamed"}, "started_at": "date"}

    def reads(self, path: Path) -> bool:
        """By the keys of its first results file.

        Args:
            path: An existing file or folder.
        """
        first = next(json_files(path, "results*.json"), None)
        return first is not None and {"results", "configs", "n-shot"} <= set(json_object(first))

    def table(self, path: Path) -> pd.DataFrame:
        """A row per evaluation, scores as `TASK.METRIC`, with `,FILTER` where that is not `none`.

        Args:
            path: A file or folder that it reads.
        """
        import pandas as pd

        return pd.DataFrame([_evaluation(file) for file in json_files(path, "results*.json")])


def _evaluation(path: Path) -> dict[str, Any]:
    data = json_object(path)
    row: dict[str, Any] = {"file": str(path), "model": data.get("model_name"), "date": data.get("date")}
    arguments = data.get("config", {}).get("model_args") or ""
    if isinstance(arguments, str):  # as on the command line: pretrained=NAME,peft=FOLDER
        arguments = dict(pair.split("=", 1) for pair in arguments.split(",") if "=" in pair)
    row |= {f"model_args.{name}": value for name, value in arguments.items()}
    for task, scores in data.get("results", {}).items():
        for name, value in scores.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                row[f"{task}.{name.removesuffix(',none')}"] = value
    for task, counts in data.get("n-samples", {}).items():
        row[f"{task}.items"] = counts.get("effective")
    return row
