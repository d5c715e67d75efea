"""The options of runners: what `--runner-option KEY=VALUE` may set, each with its type, its meaning and its default."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from harness.errors import UsageError
from harness.trial.packs import LARGEST


class Pattern(str):
    """A regular expression as text.

    Raises:
        ValueError: When it is none.
    """

    def __new__(cls, text: str) -> Pattern:
        """Take one that `re` understands."""
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(error) from None
        return super().__new__(cls, text)


class Flags(str):
    """Options of a command as on its command line, each `--name` or `--name=value`.

    Raises:
        ValueError: When something else stands there, or one of `reserved`.
    """

    reserved: ClassVar[frozenset[str]] = frozenset()
    """Names that have an option of their own, or that the runner relies on."""

    def __new__(cls, text: str) -> Self:
        """Take what a shell would split into such options."""
        flags = super().__new__(cls, text)
        if not all(re.fullmatch(r"--[a-z][\w-]*(=.*)?", word, re.DOTALL) for word in shlex.split(text)):
            raise ValueError("no flags")
        if taken := cls.reserved & flags.values.keys():
            raise ValueError(f"{taken} are taken")
        return flags

    @property
    def values(self) -> dict[str, str | bool]:
        """By name; True where a flag has no value."""
        pairs = (word.removeprefix("--").partition("=") for word in shlex.split(self))
        return {name: value if equals else True for name, equals, value in pairs}


_KINDS: Mapping[type, tuple[str, str]] = {
    int: ("whole number", "4"),
    float: ("number", "4"),
    str: ("text", "name"),
    Flags: ("list of flags, none of which another option or the runner sets", "'--reservation=class --exclusive'"),
    Pattern: ("regular expression", "'NCCL|Xid'"),
}
"""What the value of an option is called, and an example."""


@dataclass(frozen=True)
class Option:
    """What `--runner-option KEY=VALUE` may set."""

    kind: type[int] | type[float] | type[str]
    """What its value is; of a text also `Pattern` or `Flags`."""
    summary: str
    """One line: what it is, with its unit."""
    default: int | float | str | None = None
    """None: left out unless it is given."""
    minimum: int = 1
    """Of a whole number; other numbers are above 0, or may be 0 where it is 0."""

    def parse(self, key: str, value: str) -> int | float | str:
        """The value as the option's type.

        Args:
            key: Name of the option, for the message of an error.
            value: What the user set, as text.

        Raises:
            UsageError: When it is not a number where one is needed, or too small.
        """
        try:
            parsed = self.kind(value)
        except ValueError:
            rule, example = self._in_words()
            raise UsageError(
                f"runner option {key} must be a {rule}, but got '{value}': for example {key}={example}"
            ) from None
        if isinstance(parsed, int) and parsed < self.minimum:
            raise UsageError(f"runner option {key} must be at least {self.minimum}, but got {value}: raise it")
        if isinstance(parsed, float) and not (parsed > 0 or parsed == self.minimum):
            rule = "above 0" if self.minimum else "at least 0"
            raise UsageError(f"runner option {key} must be {rule}, but got {value}: raise it")
        return parsed

    def _in_words(self) -> tuple[str, str]:
        return next(_KINDS[kind] for kind in self.kind.__mro__ if kind in _KINDS)

    def __str__(self) -> str:
        """For example `whole number: CPU threads of each worker; default 1`."""
        return f"{self._in_words()[0]}: {self.summary}; default {'none' if self.default is None else self.default}"


COMMON: Mapping[str, Option] = {
    "workers": Option(int, "packs that run at a time"),
    "threads": Option(int, "CPU threads of each worker", 1),
    "pack": Option(int, "most trials that go to a worker at once; they train together where they can", LARGEST),
    # Resolving a study's names takes the next phase's driver seconds, on a busy machine tens of them.
    "idle_s": Option(float, "seconds that a worker waits after a phase for the next one to find it warm", 60.0),
    "time_limit_min": Option(float, "minutes after which a trial ends as timed out"),
    "checkpoint_min": Option(
        float, "minutes between two checkpoints in the midst of a trial; 0 for none but those at a signal", minimum=0
    ),
    "outside": Option(Pattern, "a worker that dies with this in its log was lost to its site"),
}
"""Options of every runner; the default of `workers` is the runner's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A runner's options with their types and defaults; see `COMMON` for the meaning of the common ones."""

    workers: int
    threads: int
    pack: int
    idle_s: float
    time_limit_min: float | None = None
    checkpoint_min: float | None = None
    """None: what the environment says, see `harness.trial.workspace.checkpoint_seconds`."""
    outside: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    """The runner's own options, by name, as it declares them; one without a default is absent unless it was given."""
