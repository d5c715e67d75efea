"""What a study has cost, failed and lost work included, and where its own budget stopped it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.files import parse_json, write_atomically
from harness.records.codec import Misfit, Record, canonical_json, decode, to_json
from harness.records.paths import StudyPaths
from harness.records.trial import CostRecord


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What some work cost."""

    seconds: float = 0.0
    """Wall seconds."""
    hours: float = 0.0
    """Hours that GPUs were held; wall hours of work that held none."""
    money: float | None = None
    """In the currency of the study's prices; None where nothing has a price."""

    def __add__(self, other: Bill) -> Bill:
        """Both together; what has no price adds nothing to the money."""
        prices = [one.money for one in (self, other) if one.money is not None]
        return Bill(
            seconds=self.seconds + other.seconds,
            hours=self.hours + other.hours,
            money=sum(prices) if prices else None,
        )


def bill_of(cost: CostRecord) -> Bill:
    """What a trial cost, by its record."""
    return Bill(seconds=cost.total_s, hours=(cost.gpu_s or cost.total_s) / 3600, money=cost.money)


def total(bills: Iterable[Bill]) -> Bill:
    """All of them together."""
    return sum(bills, Bill())


@dataclass(frozen=True, kw_only=True)
class Share(Record):
    """How far a family is in a phase."""

    ended: int
    planned: int
    """About."""


@dataclass(frozen=True, kw_only=True)
class Halt(Record):
    """A study's own budget was reached before a phase had ended; gone once the phase has."""

    phase: str
    text: str
    """What was spent, what is left undone, and how to go on, in one sentence."""
    families: Mapping[str, Share]
    at: str
    """UTC, ISO 8601."""


def fewer(families: Mapping[str, Share]) -> str:
    """Which families did not get all of their trials, for example `lora 3 of 8`."""
    short = {name: share for name, share in families.items() if share.ended < share.planned}
    return ", ".join(f"{name} {share.ended} of {share.planned}" for name, share in short.items())


def write_halt(study: StudyPaths, halt: Halt) -> None:
    """Keep for reports that a study's families may not have had equal budgets."""
    write_atomically(study.halt, canonical_json(to_json(halt)) + "\n")


def read_halt(study: StudyPaths) -> Halt | None:
    """Where a study's budget stopped it; None where it did not, or has gone on since."""
    try:
        return decode(Halt, parse_json(study.halt.read_text()))
    except (OSError, ValueError, Misfit):
        return None
