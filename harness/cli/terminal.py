"""What every command shares: errors as one sentence and a code, results on stdout, logs on stderr."""

from __future__ import annotations

import errno
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from harness.errors import EXIT_INTERRUPTED, HarnessError, SpecError, StorageError, UsageError, describe, one_line

F = TypeVar("F", bound=Callable[..., Any])
log = logging.getLogger(__name__)


class Commands(click.Group):
    """Lists verbs in the order of the work, not of the alphabet, and turns errors into one sentence and a code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Verbs as they were declared."""
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a verb; a mistake ends in one sentence on stderr and its exit code."""
        try:
            # Click would print its own errors in a form of its own and exit with codes of its own.
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except HarnessError as error:
            _fail(str(error), error.exit_code)
        except click.ClickException as error:
            _fail(error.format_message(), UsageError.exit_code)
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted: everything finished is kept, run the same command to go on", EXIT_INTERRUPTED)
        except BrokenPipeError:  # `harness list | head`: whoever read has enough, which is no failure
            sys.stderr.close()
        except Exception as error:
            log.debug("the command ended with", exc_info=True)
            _fail(*_unforeseen(error))


def _unforeseen(error: Exception) -> tuple[str, int]:
    """What is said of an error that nothing closer to it caught, and the exit code."""
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = one_line(str(error.filename), 100)
        return f"{name} must be a path that the file system takes, but is too long: correct it", SpecError.exit_code
    if isinstance(error, OSError) and error.filename:  # a folder that is a file, or may not be written, is met anywhere
        problem = f"{error.filename} must be readable and writable, but is not ({error.strerror})"
        return f"{problem}: free space, fix permissions, or name another folder", StorageError.exit_code
    return f"{describe(error)}, which nobody foresaw: --verbose shows where", HarnessError.exit_code


def _fail(message: str, code: int) -> None:
    click.echo(f"harness: {one_line(message)}", err=True)
    sys.exit(code)


def listen(verbose: bool) -> None:
    """Show what the harness logs on stderr; what the libraries log and warn of only if `verbose`."""
    import warnings

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    # Libraries log at INFO what only their developers need; their warnings repeat at every import.
    log = logging.getLogger(None if verbose else "harness")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        logging.getLogger().addHandler(logging.NullHandler())
        warnings.simplefilter("ignore")


def show(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    """Print a result for a program or for a person.

    Args:
        value: A dataclass, a list of them, or plain JSON values.
        as_json: Whether a program reads it.
        text: Makes it a text for people.
    """
    from harness.records.codec import to_json

    click.echo(json.dumps(to_json(value), indent=1, ensure_ascii=False, allow_nan=False) if as_json else text(value))


def json_option(function: F) -> F:
    """The option of every verb whose result a program may read."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
