"""Where every file lies, and how records are written and read: whole, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Every path that the harness writes, computed in one place."""

    results: Path = Path("results")
    reports: Path = Path("reports")

    @property
    def trials(self) -> Path:
        """Folder of all trials, shared by all studies."""
        return self.results / "trials"

    @property
    def database(self) -> Path:
        """The DuckDB file, derived from the records."""
        return self.results / "harness.duckdb"

    def trial(self, key: str) -> Path:
        """A trial's folder, in one of 256 by the key's first two digits, so that no folder grows too wide."""
        return self.trials / key[:2] / key

    def record(self, key: str) -> Path:
        """A trial's record."""
        return self.trial(key) / "record.json"

    def items(self, key: str) -> Path:
        """A trial's item-level outcomes."""
        return self.trial(key) / "items.parquet"

    def checkpoint(self, key: str) -> Path:
        """Where a trial that stopped at a rung left what its continuation needs."""
        return self.trial(key) / "checkpoint"

    def rungs(self, key: str) -> Path:
        """Which lower rungs of a full-fidelity trial left a checkpoint: one small file each."""
        return self.trial(key) / "rungs"

    def traceback(self, key: str) -> Path:
        """The traceback of a trial that crashed."""
        return self.trial(key) / "traceback.txt"

    def model(self, key: str) -> Path:
        """A trial's tuned model, where it was asked to keep it."""
        return self.trial(key) / "model"

    @property
    def cache(self) -> Path:
        """What takes long and can be computed again; deleting it loses nothing."""
        return self.results / "cache"

    @property
    def machine(self) -> Path:
        """What was measured of the machines that ran trials, which all trials go by."""
        return self.results / "machine"

    def study(self, name: str) -> Path:
        """What the driver knows of a study: its file, its trials and why each ran, its jobs and its lock."""
        return self.results / "studies" / name

    def report(self, name: str) -> Path:
        """A study's report."""
        return self.reports / f"{name}.html"
