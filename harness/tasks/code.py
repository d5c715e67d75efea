"""The functions that a task file's `!function` tags name; `file.require_permission` comes before a user's are imported."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from harness.errors import HarnessError, SpecError, describe
from harness.tasks.file import CodeReference, Yaml


def resolved(value: Yaml) -> Yaml:
    """A value of a task file with functions in the place of their names.

    Raises:
        SpecError: When one cannot be imported, with what its module says.
    """
    if isinstance(value, CodeReference):
        return _imported(value)
    if isinstance(value, dict):
        return {key: resolved(item) for key, item in value.items()}
    return [resolved(item) for item in value] if isinstance(value, list) else value


def _imported(code: CodeReference) -> object:
    from lm_eval.tasks._yaml_loader import _import_func_in_yml

    try:
        with redirect_stdout(sys.stderr):  # what a module says may not stand in a command's answer
            return _import_func_in_yml(code.name, code.folder)
    except HarnessError:
        raise
    except (Exception, SystemExit) as error:  # a module of anybody's: some of lm-eval's end the process
        raise SpecError(
            f"!function {code.name} of {code.folder.resolve().name} must be importable, but is not ({describe(error)}): install "
            "what it needs, or correct the name"
        ) from error


@contextmanager
def repeatable() -> Iterator[None]:
    """Random numbers from lm-eval's seed on, for functions that draw rows or prompts (GPQA's shuffle the choices).

    Else a base and what it was tuned to would be scored on other items, wherever these are two processes.
    """
    import numpy as np

    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)  # both as in `lm_eval.simple_evaluate`
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
