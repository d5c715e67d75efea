"""What a task's file says of drawing answers: how many, and by which settings; without `do_sample: true` none is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import SpecError
from harness.metrics.base import measure

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
"""Settings that only count where answers are drawn."""


def generation_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings; without `do_sample: true` the likeliest token is taken each time."""
    given = dict(config.get("generation_kwargs") or {})
    given.setdefault("until", [config.get("fewshot_delimiter", "\n\n")])
    if samples(config):
        return given | {"do_sample": True, "temperature": float(given.get("temperature", 1.0))}
    kept = {key: value for key, value in given.items() if key not in SAMPLING}
    return kept | {"do_sample": False, "temperature": 0.0}


def samples(config: Mapping[str, Any]) -> bool:
    """Whether a task's file says that answers are drawn."""
    given = config.get("generation_kwargs") or {}
    return bool(given.get("do_sample")) and bool(given.get("temperature", 1.0))


def repeats_of(config: Mapping[str, Any], where: str) -> int:
    """Answers to each item; a likeliest one is always the same, so there is one."""
    repeats = config.get("repeats", 1)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise SpecError(f"{where}: repeats must be a number of answers, but is {repeats!r}: give 1 or more")
    return repeats if samples(config) else 1


def sampling_notes(raw: Mapping[str, Any], metric: str) -> list[str]:
    """What a reader must know of how answers are drawn."""
    repeats, ours = raw.get("repeats", 1), measure(metric)
    if not samples(raw):
        return ["generates once, though its file repeats: a greedy answer is always the same"] if repeats != 1 else []
    notes = [f"samples {repeats} answer{'s' * (repeats != 1)} per item, with the same random numbers for every model"]
    if repeats != 1 and not raw.get("filter_list") and not (ours and ours.every_sample):
        notes.append(f"of {repeats} answers the first counts: name a filter, for example majority_vote")
    return notes
