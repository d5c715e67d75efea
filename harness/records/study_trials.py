"""Which trials a study has, and why: one line for each, written before the trial is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.files import append_line
from harness.records.codec import Record, read_records, to_json
from harness.records.paths import Paths
from harness.records.trial import TrialResult
from harness.space import Scalar


@dataclass(frozen=True, kw_only=True)
class Member(Record):
    """One trial of a study. A trial that a scheduler took over several rungs has one line, key and record for each."""

    key: str
    role: Role
    family: str
    """Name in the study; `base` for the base model itself."""
    task: str
    base_model: str
    repetition: int
    """Which fresh seed, counting from 0; 0 outside the confirm phase."""
    number: int
    """Of the trial in its cell, counting from 0; the same at every rung."""
    params: Mapping[str, Scalar]
    """The searched values."""
    reused: bool
    """Whether the record existed before this study asked for it."""
    asked_at: str
    """UTC, ISO 8601."""
    fidelity: float = 1.0
    """Where it stops. A number without a line at a higher fidelity was not promoted; its record is complete as it is."""


def read_members(paths: Paths, study: str) -> list[Member]:
    """A study's trials in the order they were asked for; empty for an unknown study.

    Raises:
        StorageError: When a line other than an unfinished last one is damaged.
    """
    return read_records(paths.study(study).members, Member)


def is_reused(member: Member, result: TrialResult, study: str) -> bool:
    """Whether another study paid for a trial: before this one asked for it, or while both wanted it.

    Args:
        member: Why a study wanted it.
        result: Its record.
        study: The study's name.
    """
    return is_paid_by_another(member.reused, result.provenance.study, study)


def is_paid_by_another(reused: bool, made_for: str, study: str) -> bool:
    """The same, from a member's flag and the study that a record was made for, empty where that is not known."""
    return reused or made_for not in ("", study)


def append_member(paths: Paths, study: str, member: Member) -> None:
    """Add a line.

    Args:
        paths: Where the study is.
        study: Its name.
        member: The trial, which may start once the line is there.
    """
    # a power cut may lose the last lines; the next driver asks for the same trials and finds their records
    append_line(paths.study(study).members, to_json(member), sync=False)


Role = Literal["base", "search", "confirm"]
"""Why a study ran a trial."""
