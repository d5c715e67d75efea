"""`harness import`: records of another results folder, or runs that others made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.cli.terminal import json_option, show
from harness.errors import UsageError


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--mapping",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML that says which column means what; see 'harness schema mapping'.",
)
@click.option("--name", default=None, help="Under which name the runs are kept; the file's if left out.")
@click.option("--check", is_flag=True, help="Say what was understood and what looks wrong, and write nothing.")
@json_option
@click.pass_obj
def import_command(
    root: Path, source: Path, mapping: Path | None, name: str | None, check: bool, as_json: bool
) -> None:
    """Take over SOURCE: another results folder, or runs that others made.

    These may be a CSV or Parquet table, results of lm_eval or of PEFT's method comparison, an Optuna storage, or a wandb
    or mlruns folder. What is there already under the same name is replaced; a folder's records never are.
    """
    from harness.records.paths import Paths

    paths = Paths(root / "results", root / "reports")
    if Paths(source).trials.is_dir():
        from harness.cli.listing import import_records

        if mapping or name or check:
            raise UsageError(
                "a results folder must be imported as it is, but got options for runs of others: leave them out"
            )
        show(import_records(paths, source), as_json, lambda summary: summary.text())
        return
    from harness.foreign.take import take

    taken: Any = take(paths, source, mapping, name, check)
    show(taken, as_json, lambda taken: taken.text())
    if taken.exit_code:
        sys.exit(taken.exit_code)
