"""A table: CSV, Parquet or JSON lines, a row per run, or per run and time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.files import parse_json
from harness.foreign.sources.base import Source

if TYPE_CHECKING:
    import pandas as pd


class Table(Source):
    """A CSV, Parquet or JSON lines file; W&B's and MLflow's exports as CSV are such."""

    summary = "A CSV, Parquet or JSON lines file, a row per run, or per run and time."

    def reads(self, path: Path) -> bool:
        """By its suffix.

        Args:
            path: An existing file or folder.
        """
        return path.is_file() and path.suffix in (".csv", ".parquet", ".jsonl")

    def table(self, path: Path) -> pd.DataFrame:
        """Its rows; nested values of JSON lines become columns with dotted names.

        Args:
            path: A file that it reads.
        """
        import pandas as pd

        if path.suffix == ".csv":
            return pd.read_csv(path, low_memory=False)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        with path.open("rb") as file:
            return pd.json_normalize([parse_json(line) for line in file if line.strip()])
