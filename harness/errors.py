"""The exceptions that callers catch, each with the exit code that the command line returns for it.

    HarnessError            1
    ├── UsageError          2   the command was called wrongly
    ├── SpecError           3   a study, task, model or data file is wrong
    ├── PartialFailure      4   some trials failed, the rest is done and kept
    ├── StorageError        5   a record, database or folder cannot be read or written
    │   └── NewerRecord         a record of a later version of harness: it is whole, and stays
    ├── BudgetReached       8   what the study may cost is spent; what is left was not begun
    └── TrialFailure            ends one trial; becomes its record's reason, never reaches the user

A message states the rule, the value received, and the remedy, in one sentence.
"""

from __future__ import annotations

import os
import re
from typing import ClassVar

EXIT_INTERRUPTED = 130
EXIT_LOST = 6
"""`harness compare` found that a skill was lost."""
EXIT_CANNOT_TELL = 7
"""`harness compare` cannot tell whether a skill was lost."""


class HarnessError(Exception):
    """Base of every error that a user can cause or must know of."""

    exit_code: ClassVar[int] = 1


class UsageError(HarnessError):
    """The command was called with arguments that cannot be meant."""

    exit_code = 2


class SpecError(HarnessError):
    """A study, task, model or data file breaks a rule."""

    exit_code = 3


class PartialFailure(HarnessError):
    """Some trials ended without a score; everything else was kept."""

    exit_code = 4


class StorageError(HarnessError):
    """A record, database or folder cannot be read or written."""

    exit_code = 5


class BudgetReached(HarnessError):
    """What a study may cost in all is spent before it has ended."""

    exit_code = 8


class NewerRecord(StorageError):
    """A record that a later version of harness wrote: neither absent nor damaged."""


class TrialFailure(HarnessError):
    """Ends one trial, whose record says that it crashed and why; there is nothing to debug."""


def one_of(kind: str, received: str, valid: list[str]) -> str:
    """Message for a name that is not among the valid ones, with the closest match first.

    Args:
        kind: What was named, for example "method".
        received: The name as given.
        valid: Every name that would have been right.
    """
    from difflib import get_close_matches

    received = one_line(received, 100)
    close = get_close_matches(received, valid, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{kind} must be one of those known, but got '{received}': {hint}valid: {', '.join(sorted(valid))}"


_TOKEN = re.compile(
    r"\b(?:hf_\w{30,}|sk-[\w-]{20,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{16,}|xox[abp]-[\w-]{10,})"
    r"|(?i:(?<=bearer ))[\w.~+/=-]{8,}|(?<=://)[^\s@/]+(?=@)"
)
"""What the tokens of well-known services look like, what follows `Bearer`, and who logs in by an address."""
_SECRET = re.compile("(?:^|_)(?:TOKEN|SECRET|PASSWORD|API_?KEY)(?:S?$|_)")
"""In names of environment variables."""


def redact(text: str) -> str:
    """A text for a record or a log without the secrets that may stand in it: tokens, and values of variables that hold one."""
    for name, value in os.environ.items():
        if _SECRET.search(name.upper()) and len(value) >= 8:
            text = text.replace(value, f"<{name}>")
    return _TOKEN.sub("<token>", text)


def one_line(text: str, longest: int = 1000) -> str:
    """A text for the end of a sentence: on one line, cut, without secrets or characters that a terminal would act on.

    Args:
        text: Any text, for example a value that a user gave.
        longest: Characters that are shown; of a longer one, the beginning and three dots.
    """
    text = redact(" ".join(text.split()))
    cut = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def describe(error: BaseException) -> str:
    """An error that nobody foresaw in one sentence: its type, its message, and where it was raised."""
    import traceback

    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {one_line(str(error), 300)} (in {frame.name}, {os.path.basename(frame.filename)} line {frame.lineno})"
