"""Which pipelines keep within what a study accepts, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.study.accept import Limits


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a pipeline forgets and costs; None where that was not measured."""

    forgetting: float | None
    """Of the skill that lost most, as a share."""
    seconds: float | None
    memory_bytes: float | None


BEYOND = {
    "forgetting": "forgets more than is accepted",
    "seconds": "trains longer than is accepted",
    "memory_bytes": "takes more memory than is accepted",
}
UNKNOWN = {
    "forgetting": "nobody measured what it forgets",
    "seconds": "nobody measured how long it trains",
    "memory_bytes": "nobody measured its memory",
}


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Who is within the limits."""

    within: tuple[str, ...]
    """In the order given."""
    refused: Mapping[str, tuple[str, ...]]
    """All others, with half a sentence for each limit that they break or that cannot be judged."""


def accepted(needs: Mapping[str, Needs], limits: Limits) -> Accepted:
    """Which pipelines keep the limits; what was not measured keeps none.

    Args:
        needs: By pipeline.
        limits: What is accepted.
    """
    reasons = {name: _broken(own, limits) for name, own in needs.items()}
    return Accepted(
        within=tuple(name for name, own in reasons.items() if not own),
        refused={name: own for name, own in reasons.items() if own},
    )


def _broken(needs: Needs, limits: Limits) -> tuple[str, ...]:
    found = []
    for name, beyond in BEYOND.items():
        limit, own = getattr(limits, name), getattr(needs, name)
        if limit is not None and (own is None or own > limit):
            found.append(UNKNOWN[name] if own is None else beyond)
    return tuple(found)
