"""Search spaces: what a hyperparameter may be, its literature default, and whether a sweep searches it.

A `Space` maps a parameter's name to its distribution. Plug-ins declare their spaces with these types;
samplers translate them for Optuna; studies narrow or fix them (`override`). `Params` holds one value for each name.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import SpecError, one_of

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Float:
    """A real number in [low, high]; uniform in its logarithm if `log`."""

    low: float
    high: float
    default: float
    log: bool = False
    searched: bool = True

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is a finite number inside the range."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high and math.isfinite(
            value
        )  # the range first: it may be too long for a float

    def sample(self, rng: random.Random) -> float:
        """Draw a number."""
        if not self.log:
            return rng.uniform(self.low, self.high)
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)  # the exponential of a logarithm may round past an end

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]{' log' if self.log else ''}"


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high]; uniform in its logarithm if `log`."""

    low: int
    high: int
    default: int
    log: bool = False
    searched: bool = True

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is a whole number inside the range."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def sample(self, rng: random.Random) -> int:
        """Draw a whole number; with `log`, each is as likely as the interval that rounds to it."""
        if not self.log:
            return rng.randint(self.low, self.high)
        value = round(math.exp(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5))))
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"[{self.low}, {self.high}] whole{' log' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of `choices`."""

    choices: tuple[Scalar, ...]
    default: Scalar
    searched: bool = True

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is one of the choices (True is not 1)."""
        return any(value == choice and type(value) is type(choice) for choice in self.choices)

    def sample(self, rng: random.Random) -> Scalar:
        """Draw a choice."""
        return rng.choice(self.choices)

    def __str__(self) -> str:
        return "{" + ", ".join(map(str, self.choices)) + "}"


@dataclass(frozen=True)
class Text:
    """A text that a study gives, for example a path or names; never searched."""

    default: str = ""
    names: str = ""
    """`tasks` or `models`: it lists names, each with a weight if wanted (`trec=0.5, my_task=0.25`), and planning pins
    each to the content that it has then (`trec@3f...=0.5`). Empty: it names nothing."""
    searched: bool = False

    def contains(self, value: Scalar) -> bool:
        """Whether `value` is text, and a list of names with positive weights where it lists any."""
        if not isinstance(value, str):
            return False
        try:
            return not self.names or all(entry.name and 0 < entry.weight < math.inf for entry in listed(value))
        except ValueError:
            return False

    def sample(self, rng: random.Random) -> str:
        """Its default: there is nothing to draw from."""
        return self.default

    def __str__(self) -> str:
        return f"names of {self.names}, each with =weight if wanted" if self.names else "text"


@dataclass(frozen=True)
class Named:
    """One entry of a `Text` that lists tasks or models: `trec@3f=0.5` names `trec`, as it was at `3f`, with weight 0.5."""

    name: str
    tag: str = ""
    """Fingerprint of the task, or revision of the model, that planning found; empty: whichever is there."""
    weight: float = 1.0

    @property
    def pinned(self) -> str:
        """Name and tag, as text."""
        return f"{self.name}@{self.tag}" if self.tag else self.name


def listed(text: str) -> tuple[Named, ...]:
    """The entries of a `Text` that lists names, between commas.

    Raises:
        ValueError: When a weight is not a number.
    """
    entries = []
    for part in filter(None, map(str.strip, text.split(","))):
        entry, equals, weight = part.rpartition("=")
        name, _, tag = (entry if equals else part).partition("@")
        entries.append(Named(name.strip(), tag.strip(), float(weight) if equals else 1.0))
    return tuple(entries)


Distribution = Float | Integer | Choice | Text
Space = Mapping[str, Distribution]


class Params(Mapping[str, Scalar]):
    """Values of hyperparameters by name, which do not change; read with their type: `params.integer("rank")`.

    Each reader raises `SpecError` where the name is missing and no default is given, or the value has another type.
    """

    def __init__(self, values: Mapping[str, Scalar] | None = None, **changes: Scalar) -> None:
        """Copy `values`, with `changes` in place of some of them or beside them."""
        self._values = {**(values or {}), **changes}

    def __getitem__(self, name: str) -> Scalar:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Params({self._values})"

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _of_type(name, "a whole number", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A real number, whole or not."""
        value = self._value(name, default)
        if isinstance(value, bool | str):
            raise _of_type(name, "a number", value)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or False."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise _of_type(name, "true or false", value)
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A text, or one of several choices that are texts."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise _of_type(name, "text", value)
        return value

    def names(self, name: str, default: str | None = None) -> tuple[Named, ...]:
        """The tasks or models that a `Text` lists; empty where it lists none."""
        return listed(self.text(name, default))

    def _value(self, name: str, default: Scalar | None) -> Scalar:
        value = self._values.get(name, default)
        if value is None:
            raise SpecError(one_of("parameter", name, list(self)))
        return value


def _of_type(name: str, wanted: str, value: Scalar) -> SpecError:
    return SpecError(f"parameter {name} must be {wanted}, but got {value!r}: change it in the study file")


def defaults(space: Space) -> dict[str, Scalar]:
    """The literature default of every parameter."""
    return {name: distribution.default for name, distribution in space.items()}


def searched(space: Space) -> dict[str, Distribution]:
    """The part of the space that a sweep varies."""
    return {name: distribution for name, distribution in space.items() if distribution.searched}


def scaled(distribution: Distribution, factor: float) -> Distribution:
    """A range of real numbers times a factor; anything else, and everything at a factor of 1, as it is."""
    if factor == 1 or not isinstance(distribution, Float):
        return distribution
    low, high, default = (
        float(f"{v * factor:.6g}") for v in (distribution.low, distribution.high, distribution.default)
    )
    return replace(distribution, low=low, high=high, default=default)


def check(space: Space, params: Mapping[str, Scalar], where: str) -> None:
    """Check parameters against a space.

    Args:
        space: Every parameter's distribution.
        params: Values, not necessarily of all parameters.
        where: Prefix of error messages.

    Raises:
        SpecError: When a parameter is unknown, or outside its range.
    """
    for name, value in params.items():
        if name not in space:
            raise SpecError(f"{where}: " + one_of("parameter", name, list(space)))
        if not space[name].contains(value):
            raise SpecError(
                f"{where}: {name} must lie in {space[name]}, but got {value!r}: change it in the study file"
            )


def override(space: Space, changes: Mapping[str, Any], where: str) -> dict[str, Distribution]:
    """Narrow a space by what a study says of it.

    Args:
        space: The plug-ins' own space.
        changes: Name to a scalar (fixes it), `{low, high, log}` or `{choices}` (searches within).
        where: Prefix of error messages.

    Raises:
        SpecError: For an unknown name or a range that leaves the declared one.
    """
    result = dict(space)
    for name, change in changes.items():
        if name not in space:
            raise SpecError(f"{where}: " + one_of("parameter", name, list(space)))
        if isinstance(change, Mapping):
            result[name] = _narrow(name, space[name], change, where)
        else:
            check(space, {name: change}, where)
            value = float(change) if isinstance(space[name], Float) else change
            result[name] = replace(space[name], default=value, searched=False)  # type: ignore[arg-type]
    return result


def _narrow(name: str, declared: Distribution, change: Mapping[str, Any], where: str) -> Distribution:
    if isinstance(declared, Text):
        raise SpecError(f"{where}: {name} must be one text, but got {change!r}: give it as it is")
    allowed = {"choices"} if isinstance(declared, Choice) else {"low", "high", "log", "choices"}
    if unknown := set(change) - allowed:
        raise SpecError(f"{where}: range of {name}: " + one_of("key", min(map(str, unknown)), sorted(allowed)))
    ends = (
        change["choices"]
        if "choices" in change
        else [change.get("low", _low(declared)), change.get("high", _high(declared))]
    )
    if not isinstance(ends, list | tuple) or not ends:
        raise SpecError(
            f"{where}: range of {name} must list at least one value, but got {change!r}: give choices or low and high"
        )
    for end in ends:
        check({name: declared}, {name: end}, where)
    values = tuple(float(end) if isinstance(declared, Float) else end for end in ends)
    default = declared.default
    if isinstance(declared, Choice) or "choices" in change:
        return Choice(values, default if default in values else values[0])
    low, high = values
    if not low <= high:
        raise SpecError(f"{where}: range of {name} must have low <= high, but got {low:g} and {high:g}: swap them")
    log = change.get("log", declared.log)
    if not isinstance(log, bool) or (log and not low > 0):
        raise SpecError(
            f"{where}: range of {name} must have log: true or false, true only above 0, but got {change!r}: correct it"
        )
    changed: dict[str, Any] = {"low": low, "high": high, "log": log, "searched": True}
    return replace(declared, **changed | {"default": min(max(default, low), high)})


def _low(declared: Float | Integer | Choice) -> Scalar:
    return declared.choices[0] if isinstance(declared, Choice) else declared.low


def _high(declared: Float | Integer | Choice) -> Scalar:
    return declared.choices[-1] if isinstance(declared, Choice) else declared.high
