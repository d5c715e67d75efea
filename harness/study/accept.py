"""What a study accepts: how much may be forgotten, how long a run may train, how much memory it may take.

Limits say what is advised, never what is run: no trial's key knows of them, and a study that changes them stays itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)")
_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a pipeline may cost, at most; None is no limit."""

    forgetting: float | None = None
    """On any skill, as a share: of its scale, or of a token's probability."""
    seconds: float | None = None
    """Training of one run alone."""
    memory_bytes: float | None = None
    """Peak of one run."""

    @property
    def is_none(self) -> bool:
        """Whether there is no limit."""
        return self.forgetting is None and self.seconds is None and self.memory_bytes is None


def _share(text: object) -> float:
    number, unit = _parts(text)
    if unit not in ("point", "points") or not 0 <= number <= 100:
        raise ValueError(unit)
    return number / 100


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 10**6:
        raise ValueError(value)
    return 3600.0 * value


def _memory(text: object) -> float:
    number, unit = _parts(text)
    if unit not in _BYTES or number <= 0:
        raise ValueError(unit)
    return number * _BYTES[unit]


def _parts(text: object) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(text)
    return float(match[1]), match[2]


_READ: Mapping[str, tuple[str, Callable[[object], float], str]] = {
    "forgetting": ("forgetting", _share, "must be 0 to 100 points of any skill, for example 5 points"),
    "hours": ("seconds", _seconds, "must be a number of hours above 0 that one run may train, for example 1.5"),
    "memory": ("memory_bytes", _memory, f"must be above 0 with a unit ({', '.join(_BYTES)}), for example 16 GB"),
}
"""By key of the study file: the limit, what reads it, and the rule."""


def read_limits(accept: Mapping[str, Any]) -> Limits:
    """What is written under `accept` in a study file.

    Raises:
        ValueError: With the rule, the value received, and an example.
    """
    found = {}
    for key, value in accept.items():
        if key not in _READ or value is None:
            continue
        name, read, rule = _READ[key]
        try:
            found[name] = read(value)
        except ValueError:
            raise ValueError(f"{key} {rule}, but got {value!r}") from None
    return Limits(**found)
