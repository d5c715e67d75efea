"""What a phase came to, kept for as long as nothing that it rests on has changed: then the same command reads no record.

A receipt holds the state of every file that the phase would read: which file it is (inode), its size, and when it was last
written. Whoever edits, tears, quarantines or replaces a record changes one of them, and the phase is gone through again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness.driver.experiment import Experiment
from harness.files import parse_json, read_lines, write_atomically
from harness.records.codec import Json, fingerprint, to_json
from harness.records.study_trials import Role
from harness.workers.worker import Duty


def write_receipt(experiment: Experiment, role: Role, duty: Duty, summary: Json) -> None:
    """Keep what a phase came to.

    Args:
        experiment: The study.
        role: The phase, which is complete.
        duty: What its workers are told.
        summary: What it came to, as JSON.

    Raises:
        StorageError: When the file system refuses.
    """
    content = {"state": _state(experiment, role, duty), "summary": summary}
    write_atomically(experiment.files.receipt(role), json.dumps(content) + "\n")


def read_receipt(experiment: Experiment, role: Role, duty: Duty) -> Json | None:
    """What `write_receipt` was given; None where there is none, or where going through the phase may give something else.

    Args:
        experiment: The study.
        role: The phase.
        duty: What its workers would be told.
    """
    if experiment.site.refresh or not experiment.files.done(role).exists():
        return None
    try:
        kept = parse_json(experiment.files.receipt(role).read_text())
        return kept["summary"] if kept["state"] == _state(experiment, role, duty) else None
    except (OSError, ValueError, LookupError, TypeError):  # none, or a damaged one
        return None


def _state(experiment: Experiment, role: Role, duty: Duty) -> str:
    """Fingerprint of all that a phase rests on: code, study, what its names stand for, and every file that it reads."""
    models = [to_json(model.ref) for model in experiment.models]
    tasks = [to_json(task.ref) for task in (*experiment.tasks, *experiment.off_target)]
    told = [duty.sign(), experiment.spec.model_dump(mode="json"), models, tasks]
    rest = [dict(experiment.refused), list(experiment.notes)]
    # finalists follow from the search; other phases know nothing of each other
    roles = ("search", role) if role == "confirm" else (role,)
    members = [line for line in read_lines(experiment.files.members) if line["role"] in roles]
    records = [_file(path) for path in experiment.paths.records_of(line["key"] for line in members)]
    return fingerprint([told, rest, members, records, _file(experiment.files.stops)])


def _file(path: str | Path) -> list[int]:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return []
    return [found.st_ino, found.st_size, found.st_mtime_ns]
