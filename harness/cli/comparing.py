"""`harness compare`: what finished models lost of what their base could do, as text, JSON, a page and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.terminal import json_option, show
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.compare.answers import Model
    from harness.compare.judgement import Comparison


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is compared, and on what."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    limit: int | None
    plain: bool
    device: str


@click.command(epilog="Exit codes: 0 all skills were kept, 6 one was lost, 7 that cannot be told.")
@click.argument("models", nargs=-1, metavar="BASE TUNED [MORE...]")
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAME[,NAME...]",
    help="What the base could do: tasks and groups as in studies. Of logged samples, all tasks if left out. Repeatable.",
)
@click.option(
    "--smallest",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    default=5.0,
    show_default=True,
    help="The smallest loss that matters, in points, or in percent of a byte's probability.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Score only so many items of each task.")
@click.option("--plain", is_flag=True, help="Ask in plain text, whatever chat templates the models have.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write an HTML page to this file, too.")
@json_option
@click.pass_obj
def compare(
    root: Path, /, smallest: float, output: Path | None, as_json: bool, tasks: tuple[str, ...], **rest: object
) -> None:
    """Say what TUNED (and MORE) lost of what BASE could do, skill by skill, and how sure that is.

    Each is an embedded model, a folder (a whole model, an adapter, or what `harness train` left), a hub id; or each is a
    folder that `lm_eval --log_samples` wrote.
    """
    from harness.compare.page import render
    from harness.compare.said import text, values
    from harness.files import write_atomically

    names = tuple(name.strip() for listed in tasks for name in listed.split(",") if name.strip())
    found = _compared(root, Wanted(tasks=tuple(dict.fromkeys(names)), **rest), smallest / 100)  # type: ignore[arg-type]
    if output:
        write_atomically(output, render(found))
    show(values(found) if as_json else found, as_json, text)
    if found.exit_code:
        sys.exit(found.exit_code)


def _compared(root: Path, wanted: Wanted, smallest: float) -> Comparison:
    from harness.compare.judgement import compare as judge

    if len(wanted.models) < 2:
        given = f"'{wanted.models[0]}' alone" if wanted.models else "none"
        raise UsageError(f"compare must have a base and a tuned model, but got {given}: harness compare BASE TUNED")
    base, *tuned = _answered(root, wanted)
    return judge(base, tuned, smallest)


def _answered(root: Path, wanted: Wanted) -> Sequence[Model]:
    """The models with their answers: those that were logged, or those that are given now."""
    from harness.compare.models import Exam, examine
    from harness.compare.samples import has_samples, read_samples
    from harness.tasks.task import find_task, task_folders

    logged = [has_samples(Path(name)) for name in wanted.models]
    if all(logged):
        return [read_samples(Path(name), wanted.tasks, wanted.limit) for name in wanted.models]
    if any(logged):
        samples, model = wanted.models[logged.index(True)], wanted.models[logged.index(False)]
        raise UsageError(
            f"compare must have models, or folders of logged samples, but '{samples}' holds samples and '{model}' does not: "
            "score both with lm_eval --log_samples, or name both models"
        )
    if not wanted.tasks:
        raise UsageError("compare must know what to ask the models, but got no task: add --tasks NAME")
    tasks = [find_task(name, task_folders(root)) for name in wanted.tasks]
    exam = Exam(tasks=tasks, limit=wanted.limit, plain=wanted.plain, device=wanted.device)
    return examine(wanted.models, exam)
