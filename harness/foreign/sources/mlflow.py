"""Runs of MLflow: a folder as its file store keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import read_yaml
from harness.foreign.sources.base import Source

if TYPE_CHECKING:
    import pandas as pd

_STATES = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}


class Mlflow(Source):
    """An `mlruns` folder. What `mlflow.search_runs` gives, saved as CSV, is a table."""

    summary = "An mlruns folder: parameters as params.NAME, last metrics as metrics.NAME, tags as tags.NAME."
    paper = "https://mlflow.org/docs/latest/tracking"
    mapping = {
        "source": "MLflow",
        "status": {
            "column": "status",
            "map": {"FINISHED": "complete", "FAILED": "crashed", "KILLED": "preempted", "RUNNING": "preempted"},
        },
        "costs": {"total_s": "seconds"},
    }

    def reads(self, path: Path) -> bool:
        """By the files of its first run.

        Args:
            path: An existing file or folder.
        """
        return path.is_dir() and any((run.parent / "params").is_dir() for run in path.rglob("meta.yaml"))

    def table(self, path: Path) -> pd.DataFrame:
        """A row per run that is not deleted.

        Args:
            path: A folder that it reads.
        """
        import pandas as pd

        folders = sorted(run.parent for run in path.rglob("meta.yaml") if (run.parent / "params").is_dir())
        runs = [_run(folder) for folder in folders]
        return pd.DataFrame([run for run in runs if run.pop("stage") != "deleted"])


def _run(folder: Path) -> dict[str, Any]:
    about = read_yaml(folder / "meta.yaml", loosely=True)
    row: dict[str, Any] = {
        "run": folder.name,
        "stage": about.get("lifecycle_stage"),
        "start_time": about.get("start_time"),
    }
    row["status"] = _STATES.get(about.get("status"), about.get("status"))
    if about.get("end_time") and about.get("start_time"):
        row["seconds"] = (about["end_time"] - about["start_time"]) / 1000
    for kind in ("params", "tags", "metrics"):
        for file in sorted(path for path in (folder / kind).rglob("*") if path.is_file()):
            text = file.read_text(encoding="utf-8", errors="replace").strip()
            # a metric's file has a line for each time: when, what, at which step
            value = float(text.splitlines()[-1].split()[1]) if kind == "metrics" and text else text
            row[f"{kind}.{file.relative_to(folder / kind)}"] = value
    return row
