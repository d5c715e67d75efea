"""The options that say where trials run, for every verb that runs or plans them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import UsageError
from harness.records.paths import Paths

if TYPE_CHECKING:
    from harness.driver.experiment import Site


def site_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options that say where trials run; it gets the project folder, and the options as a `Site`."""

    @click.pass_obj
    @wraps(function)
    def with_site(root: Path, /, runner: str, options: tuple[str, ...], quiet: bool, refresh: bool, **rest: Any) -> Any:
        return function(root, site=_site(root, runner, options, quiet, refresh), **rest)

    for option in (
        click.option("--quiet", is_flag=True, help="No live display."),
        click.option(
            "--refresh",
            is_flag=True,
            help="Run again what failed, and what other versions of harness, its libraries or a plug-in recorded.",
        ),
        click.option(
            "--runner-option",
            "options",
            multiple=True,
            metavar="KEY=VALUE",
            help="For example workers=4, partition=gpu, gpus=1; 'harness list runners' has them all. Repeatable.",
        ),
        click.option(
            "--runner", default="local", show_default=True, help="Where trials run: see 'harness list runners'."
        ),
    ):
        with_site = option(with_site)
    return with_site


def pair(option: str) -> tuple[str, str]:
    """Key and value of one `--runner-option`.

    Raises:
        UsageError: When it does not look like KEY=VALUE.
    """
    key, separator, value = option.partition("=")
    if not separator or not key:
        raise UsageError(f"--runner-option must look like KEY=VALUE, but got '{option}': for example workers=4")
    return key, value


def _site(root: Path, runner: str, options: tuple[str, ...], quiet: bool, refresh: bool) -> Site:
    from harness.driver.experiment import Site
    from harness.tasks.task import task_folders

    return Site(
        paths=Paths(root / "results", root / "reports"),
        task_folders=task_folders(root),
        runner=runner,
        options=dict(pair(option) for option in options),
        display=not quiet,
        refresh=refresh,
    )
