"""Why an attempt at some trials ended without their records: whose fault each cause is, and how often it is tried again.

What happens outside a trial is never charged to it: it runs again, and has no record until it has ended by itself. Only
what a trial did to its own worker, with no other trial beside it, may become its record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

from harness.records.trial import TrialStatus


class Cause(StrEnum):
    """What ended an attempt."""

    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    CANCELLED = "cancelled"
    SITE = "site"
    JOB_TIME = "job_time"
    KILLED = "killed"
    UNSEEN = "unseen"
    HOST_MEMORY = "host_memory"
    DIED = "died"
    RAISED = "raised"
    SPEC = "spec"
    STORAGE = "storage"

    @property
    def policy(self) -> Policy:
        """What follows from it."""
        return _POLICIES[self]


@dataclass(frozen=True)
class Policy:
    """What follows when an attempt ends for a cause."""

    what: str
    """What happened, as a part of a sentence."""
    fault: Literal["outside", "trial", "user"]
    """Whose doing it is; the user mends a wrong file or a full disk before anything goes on."""
    chances: int
    """Attempts at a trial that may end so. Then a trial whose fault it is has it as its record; another one is put off
    until the command is typed again."""
    certain: bool = True
    """Whether it is known that no trial did it. Otherwise the trials of a pack that was lost twice run one by one."""
    status: TrialStatus = TrialStatus.PREEMPTED
    """Of the record, where the trial is at fault."""
    node: bool = False
    """Whether the node may be at fault: one on which workers are lost so in a row gets no more of them."""


_MANY = 100
"""Attempts lost to what a scheduler says it did itself: a preempted queue may take a job away dozens of times in days."""
_SOME = 10
"""Attempts lost to what nobody can name, or to a limit that is doubled each time."""

_POLICIES: Mapping[Cause, Policy] = MappingProxyType(
    {
        Cause.PREEMPTED: Policy("the scheduler needed the node for another job", "outside", _MANY),
        Cause.NODE_FAILED: Policy("the node failed", "outside", _MANY, node=True),
        Cause.CANCELLED: Policy("somebody cancelled the job, or ended its process", "outside", _MANY),
        Cause.SITE: Policy("the worker's log names a fault of the site", "outside", _MANY, node=True),
        Cause.JOB_TIME: Policy("the job reached its time limit", "outside", _SOME, certain=False),
        Cause.KILLED: Policy(
            "the worker was killed, and nothing says by whom", "outside", _SOME, certain=False, node=True
        ),
        Cause.UNSEEN: Policy("the worker was gone when a driver looked", "outside", _SOME, certain=False),
        Cause.HOST_MEMORY: Policy(
            "the host ran out of memory", "trial", 3, certain=False, status=TrialStatus.OUT_OF_MEMORY
        ),
        Cause.DIED: Policy("the worker's process crashed", "trial", 2, certain=False, status=TrialStatus.CRASHED),
        Cause.RAISED: Policy("an error that nobody foresaw", "trial", 1, certain=False, status=TrialStatus.CRASHED),
        Cause.SPEC: Policy("a file or a configuration is wrong", "user", 0),
        Cause.STORAGE: Policy("records cannot be written", "user", 0),
    }
)
