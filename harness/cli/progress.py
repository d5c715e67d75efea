"""What a study's files say of its trials by now, of each record no more than `harness status` needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import parse_json, read_lines
from harness.records.bill import Bill
from harness.records.codec import Json
from harness.records.lost_work import LostTrial, read_lost
from harness.records.paths import Paths, StudyPaths
from harness.records.results import find_current
from harness.records.study_trials import is_paid_by_another
from harness.records.trial import TrialStatus


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is said here of a record."""

    status: TrialStatus
    reason: str
    bill: Bill
    resumed_s: float
    """Its seconds up to the checkpoint that it went on from."""
    pace: float | None
    """Seconds of training for each token."""
    host: str
    made_for: str
    """The study whose driver had it run."""


def _facts(record: Json) -> Facts:
    cost, provenance = record["cost"], record["provenance"]
    seconds, resumed = cost["seconds"], provenance.get("effective", {}).get("resumed")
    total_s = sum(seconds.values())
    return Facts(
        status=TrialStatus(record["status"]),
        reason=record.get("reason", ""),
        bill=Bill(seconds=total_s, hours=(cost.get("gpu_s") or total_s) / 3600, money=cost.get("money")),
        resumed_s=resumed["seconds"] if resumed else 0.0,
        pace=seconds["train"] / cost["tokens"] if cost.get("tokens") and "train" in seconds else None,
        host=provenance.get("hostname", ""),
        made_for=provenance.get("study", ""),
    )


class Records:
    """What records say; one that has not changed since the last look is not read again."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[int, ...], Facts]] = {}

    def find(self, path: str) -> Facts | None:
        """What the record at a path says; None where there is none that is believed.

        Raises:
            NewerRecord: When a later version of harness wrote it.
        """
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        state = (found.st_ino, found.st_size, found.st_mtime_ns)
        known_state, facts = self._seen.get(path, ((), None))
        if facts is None or known_state != state:
            if (record := find_current(path)) is None:
                return None
            self._seen[path] = state, (facts := _facts(record))
        return facts


@dataclass(frozen=True)
class RecordedTrial:
    """A trial of a study that has a record."""

    key: str
    role: str
    kind: tuple[str, str, str]
    """What trials of it have in common: base model, task and family."""
    paid: bool
    """Whether this study had it run."""
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """What the files of a study say."""

    files: StudyPaths
    asked: set[str]
    """Keys of its trials, with or without a record."""
    trials: list[RecordedTrial]
    lost: list[LostTrial]
    excluded: Mapping[str, str]
    """Nodes that got no more workers from a driver, each with the reason."""
    spec: Mapping[str, Any]
    plan: Mapping[str, Any] | None


def read_study(paths: Paths, name: str, records: Records) -> StudyFiles:
    """What the files of a study say by now.

    Args:
        paths: Of the results folder.
        name: Of the study.
        records: What was read before.

    Raises:
        StorageError: When a list of the study's trials is damaged.
        NewerRecord: When a later version of harness wrote a record.
    """
    files = paths.study(name)
    members = {line["key"]: line for line in read_lines(files.members)}
    trials = []
    for (key, member), path in zip(members.items(), paths.records_of(members), strict=True):
        if (facts := records.find(path)) is not None:
            paid = not is_paid_by_another(member["reused"], facts.made_for, name)
            kind = (member["base_model"], member["task"], member["family"])
            trials.append(RecordedTrial(key, member["role"], kind, paid, facts))
    spec, plan = _json(files.spec), _json(files.plan)
    return StudyFiles(
        files=files,
        asked=set(members),
        trials=trials,
        lost=read_lost(files.jobs),
        excluded={line["node"]: line["reason"] for line in read_lines(files.jobs) if line["event"] == "excluded"},
        spec=spec.get("study", {}) if isinstance(spec, dict) else {},
        plan=plan if isinstance(plan, dict) else None,
    )


def _json(path: Path) -> Any:
    """What a file of the study holds; None where that is damaged or not there, which the driver will say."""
    with suppress(OSError, ValueError):
        return parse_json(path.read_text())
    return None
