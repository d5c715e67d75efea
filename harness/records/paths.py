"""Where every file below `results/` and `reports/` lies; no other module knows a name of one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_RECORD = "record.json"


@dataclass(frozen=True)
class StudyPaths:
    """The files of one study: what it asked for, and what its driver and its workers tell each other."""

    folder: Path

    @property
    def name(self) -> str:
        """The study's name."""
        return self.folder.name

    @property
    def spec(self) -> Path:
        """The study file as it was started, with its fingerprint."""
        return self.folder / "study.json"

    @property
    def plan(self) -> Path:
        """What was expected before the first trial."""
        return self.folder / "plan.json"

    def facts(self, kind: Literal["tasks", "models"]) -> Path:
        """What recommendations want to know of the study's tasks or base models."""
        return self.folder / f"{kind}.json"

    @property
    def members(self) -> Path:
        """One line for each trial of the study: which phase asked for it, and why."""
        return self.folder / "members.jsonl"

    @property
    def stops(self) -> Path:
        """One line for each family that gave up before its budget was used."""
        return self.folder / "early.jsonl"

    @property
    def halt(self) -> Path:
        """Where the study's own budget stopped it; gone once the phase has ended."""
        return self.folder / "halt.json"

    @property
    def jobs(self) -> Path:
        """One line for each worker that started or ended, and for each trial that was lost with one."""
        return self.folder / "jobs.jsonl"

    @property
    def queue(self) -> Path:
        """Packs of trials on their way to workers and back."""
        return self.folder / "queue"

    @property
    def logs(self) -> Path:
        """What submitit keeps of the workers: their logs and what they were told."""
        return self.folder / "jobs"

    @property
    def lock(self) -> Path:
        """Held by the one driver that runs the study."""
        return self.folder / "driver.lock"

    def receipt(self, phase: str) -> Path:
        """What a complete phase came to, and the state of all that it rests on; deleting it loses nothing."""
        return self.folder / f"{phase}.receipt.json"

    def done(self, phase: str) -> Path:
        """Written when a phase (base, search, confirm) is complete; Snakemake waits for it."""
        return self.folder / f"{phase}.done"


@dataclass(frozen=True)
class Paths:
    """Every path that the harness writes, computed in one place."""

    results: Path = Path("results")
    reports: Path = Path("reports")

    @property
    def trials(self) -> Path:
        """Folder of all trials, shared by all studies."""
        return self.results / "trials"

    def trial(self, key: str) -> Path:
        """A trial's folder, in one of 256 by the key's first two digits, so that no folder grows too wide."""
        return self.trials / key[:2] / key

    def record(self, key: str) -> Path:
        """A trial's record."""
        return self.trial(key) / _RECORD

    def records_of(self, keys: Iterable[str]) -> Iterator[str]:
        """Where the records of trials lie, whether or not they are there."""
        folder = str(self.trials)
        return (f"{folder}/{key[:2]}/{key}/{_RECORD}" for key in keys)  # as below: no Path objects

    def records(self) -> Iterator[str]:
        """Where the record of every trial that has a folder lies, in key order; a trial still running has none yet."""
        for shard in _folders(self.trials):
            for trial in _folders(shard):
                yield f"{trial}/{_RECORD}"  # a hundred thousand Path objects would cost as much as reading the files

    def claim(self, key: str) -> Path:
        """Locked by the process that runs a trial; there only while one does."""
        return self.trial(key) / "claim"

    def items(self, key: str) -> Path:
        """A trial's item-level outcomes."""
        return self.trial(key) / "items.parquet"

    def checkpoint(self, key: str) -> Path:
        """Where a trial that stopped at a rung left what its continuation needs."""
        return self.trial(key) / "checkpoint"

    def midway(self, key: str) -> Path:
        """What a trial that is not yet done has saved, to go on from if it is interrupted."""
        return self.trial(key) / "midway"

    def rungs(self, key: str) -> Path:
        """Which lower rungs of a full-fidelity trial left a checkpoint: one small file each."""
        return self.trial(key) / "rungs"

    def traceback(self, key: str) -> Path:
        """The traceback of a trial that crashed."""
        return self.trial(key) / "traceback.txt"

    def model(self, key: str) -> Path:
        """A trial's tuned model, where it was asked to keep it."""
        return self.trial(key) / "model"

    def quarantine(self, name: str) -> Path:
        """A record that was set aside since it could not be believed; beside it, with suffix .txt, why."""
        return self.results / "quarantine" / f"{name}.json"

    def quarantined_folder(self, name: str) -> Path:
        """A checkpoint that was set aside since it is damaged; beside it, with suffix .txt, why."""
        return self.results / "quarantine" / name

    def quarantined(self) -> list[Path]:
        """All records that were set aside, by name."""
        return sorted(self.quarantine("").parent.glob("*.json"))

    def imported(self, name: str) -> Path:
        """The bundle of runs that were imported under a name."""
        return self.results / "imported" / f"{name}.parquet"

    def bundles(self) -> list[Path]:
        """All bundles of records, by name."""
        return sorted(self.imported("").parent.glob("[!.]*.parquet"))

    @property
    def database(self) -> Path:
        """The DuckDB file, derived from the records."""
        return self.results / "harness.duckdb"

    @property
    def database_lock(self) -> Path:
        """Held by the one process that builds the database."""
        return self.results / ".harness.duckdb.lock"

    @property
    def backtest(self) -> Path:
        """How well recommendations would have done on each task, had it been the new one."""
        return self.results / "backtest.json"

    @property
    def cache(self) -> Path:
        """What takes long and can be computed again; deleting it loses nothing."""
        return self.results / "cache"

    @property
    def machine(self) -> Path:
        """What was measured of the machines that ran trials, which all trials go by."""
        return self.results / "machine"

    def trained(self, task: str) -> Path:
        """The model folder that `harness train` leaves for a task."""
        return self.results / "models" / task

    def study(self, name: str) -> StudyPaths:
        """The files of a study."""
        return StudyPaths(self.results / "studies" / name)

    def studies(self) -> list[StudyPaths]:
        """All studies that have a folder, by name."""
        return [StudyPaths(Path(folder)) for folder in _folders(self.results / "studies")]

    def started(self) -> list[StudyPaths]:
        """All studies that were started, by name."""
        return [study for study in self.studies() if study.spec.exists()]

    def report(self, name: str) -> Path:
        """A study's report."""
        return self.reports / f"{name}.html"


def _folders(parent: Path | str) -> list[str]:
    """The subfolders of a folder, sorted; none where it does not exist."""
    try:
        with os.scandir(parent) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []
