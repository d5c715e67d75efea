"""The command line: verbs, exit codes, and one clear sentence for every mistake.

Results go to stdout (`--json` for programs), progress and logs to stderr. Exit codes: 0 done, 2 usage, 3 bad study or
task file, 4 partly failed, 5 storage, 6 lost and 7 cannot tell (both of `compare`), 8 the study's budget is reached, 130
interrupted. Everything heavy is imported inside the verb that needs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from harness import __version__
from harness.cli.comparing import compare
from harness.cli.importing import import_command
from harness.cli.site import pair, site_options
from harness.cli.terminal import Commands, json_option, listen, show
from harness.errors import SpecError, StorageError, UsageError
from harness.plugins import use_project

if TYPE_CHECKING:
    from harness.cli.advice import Limits, Wanted
    from harness.driver.experiment import Site
    from harness.records.paths import Paths
    from harness.records.study_trials import Role
    from harness.study.spec import StudySpec
    from harness.tasks.task import Task


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", prog_name="harness")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    envvar="HARNESS_ROOT",
    help="Project folder, with studies/ and, if it has plug-ins of its own, plugins/.",
)
@click.option("--verbose", is_flag=True, help="Log what the libraries say, too.")
@click.pass_context
def main(ctx: click.Context, root: Path, verbose: bool) -> None:
    """Which way of fine-tuning should I use for my task, what will it cost, and what will my model forget?"""
    listen(verbose)  # first, so that a broken plug-in is heard of
    if not root.is_dir():
        raise UsageError(f"--root must be a folder, but got '{root}': create it or name another")
    use_project(root)  # before any verb asks for a plug-in
    ctx.obj = root


def _paths(root: Path) -> Paths:
    from harness.records.paths import Paths

    return Paths(root / "results", root / "reports")


def _study(root: Path, name: str) -> StudySpec:
    from harness.errors import one_of
    from harness.study.load import load_study

    # `quickstart` and `studies/quickstart.yaml` are the same study: Snakemake passes paths, people type names.
    path = Path(name) if name.endswith((".yaml", ".yml")) else root / "studies" / f"{name}.yaml"
    if not path.exists() and not path.is_symlink():  # of a link to nothing, reading says what is wrong
        known = [p.stem for p in (root / "studies").glob("*.yaml")]
        raise SpecError(one_of("study", name, known) + f" (files in {root / 'studies'})")
    return load_study(path)


def _task(root: Path, name: str) -> Task:
    from harness.tasks.task import find_task, task_folders

    return find_task(name, task_folders(root))


def _phase(role: Role) -> Callable[[Callable[[], None]], click.Command]:
    """A verb that runs one phase of a study."""

    def wrap(function: Callable[[], None]) -> click.Command:
        @main.command(role, help=function.__doc__)
        @click.argument("study")
        @site_options
        @json_option
        @click.option("--dry-run", is_flag=True, help="Say what would be run, and stop.")
        def command(root: Path, /, study: str, as_json: bool, dry_run: bool, site: Site) -> None:
            if dry_run:
                _plan(root, study, as_json, site)
                return
            from harness.driver.phases import run_phase

            spec = _study(root, study)
            summary = run_phase(role, spec, site, said=partial(_said, site.paths, spec.name))
            show(summary, as_json, lambda s: s.text())
            if summary.exit_code:  # after the summary: partly failed is a result, which Snakemake goes on with
                sys.exit(summary.exit_code)

        return command

    return wrap


def _said(paths: Paths, study: str) -> list[str]:
    """The verdicts of a study that runs; whatever is wrong with its files must not stop it."""
    from harness.report.conclusion import said_now

    try:
        return [one.text for one in said_now(paths, study)]
    except StorageError as error:
        return [f"no verdict can be given: {error}"]


def _plan(root: Path, study: str, as_json: bool, site: Site) -> None:
    from harness.driver.plan import plan_study
    from harness.driver.resolve import resolve

    planned = plan_study(resolve(_study(root, study), site))
    show(planned, as_json, lambda plan: plan.text())
    if planned.exit_code:
        sys.exit(planned.exit_code)


@main.command()
@click.argument("study")
@site_options
@json_option
def plan(root: Path, /, study: str, as_json: bool, site: Site) -> None:
    """Say what STUDY will cost and what it could find, before anything is spent."""
    _plan(root, study, as_json, site)


@_phase("base")
def _base() -> None:
    """Score the base models of STUDY on its tasks and off-target suite."""


@_phase("search")
def _search() -> None:
    """Tune every family of STUDY with the same budget, on validation only."""


@_phase("confirm")
def _confirm() -> None:
    """Rerun the finalists of STUDY with fresh seeds and score them on the test split."""


@main.command()
@click.option("--schema", is_flag=True, help="Print the documented tables and views instead.")
@json_option
@click.pass_obj
def database(root: Path, schema: bool, as_json: bool) -> None:
    """Rebuild results/harness.duckdb from the records."""
    from harness.database import ingest

    if schema:
        show(ingest.SCHEMA, as_json, lambda _: ingest.schema_text())
        return
    show(ingest.ingest(_paths(root)), as_json, lambda summary: summary.text())


@main.command()
@json_option
@click.pass_obj
def backtest(root: Path, as_json: bool) -> None:
    """Test the recommender: leave each task out, choose for it, and measure the regret."""
    from harness.recommend.rank import backtest as run_backtest

    show(run_backtest(_paths(root)), as_json, lambda result: result.text())


@main.command()
@click.option(
    "--task", "task_name", required=True, help="A file of studies/tasks/, an embedded task, or an lm-eval task."
)
@click.option("--model", default=None, help="Base model; the one with the most evidence if left out.")
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="How many pipelines to rank.")
@click.option(
    "--max-forgetting",
    type=float,
    help="Largest acceptable loss on any off-target task, as a share: .05 is five points, or a 20th of a token's probability.",
)
@click.option("--max-seconds", type=float, help="Longest acceptable trial: loading, training and scoring.")
@click.option(
    "--max-memory-gb",
    "max_memory_bytes",
    type=float,
    callback=lambda ctx, parameter, gigabytes: None if gigabytes is None else gigabytes * 1e9,
    help="Largest acceptable peak memory.",
)
@click.option(
    "--score-base", is_flag=True, help="Score the base model on the task first, to predict scores and not only gains."
)
@json_option
@click.pass_obj
def recommend(
    root: Path, /, task_name: str, model: str | None, score_base: bool, as_json: bool, **limits: Unpack[Limits]
) -> None:
    """Rank pipelines for a task from all that was measured so far, or say what evidence is missing."""
    from harness.cli.advice import advise
    from harness.tasks.task import task_folders

    # Scoring loads torch and the model, which takes longer than the advice: only on request.
    folders = task_folders(root) if score_base else None
    answer = advise(_paths(root), _task(root, task_name), model, folders, **limits)
    show(answer, as_json, lambda answer: answer.text())


@main.command()
@click.option("--task", "task_name", required=True, help="The task to tune for.")
@click.option("--model", default=None, help="Base model; the one with the most evidence if left out.")
@click.option(
    "--pipeline",
    type=click.Path(dir_okay=False, path_type=Path),
    help="YAML with model, stages and steps instead of a recommendation.",
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), help="Model folder [default: results/models/TASK]."
)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--keep",
    type=click.Choice(["adapter", "merged", "both"]),
    default="merged",
    show_default=True,
    help="Leave a whole model, an adapter that PEFT puts beside the base, or both.",
)
@click.option("--dry-run", is_flag=True, help="Print the pipeline that would be run, and stop.")
@json_option
@click.pass_obj
def train(
    root: Path, /, task_name: str, model: str | None, pipeline: Path | None, as_json: bool, **wanted: Unpack[Wanted]
) -> None:
    """Tune a model for a task with the recommended pipeline and leave a model folder with a model card."""
    from harness.cli.advice import order_from_advice, order_from_file, train_model, with_suite
    from harness.tasks.task import task_folders

    paths, task, folders = _paths(root), _task(root, task_name), task_folders(root)
    if pipeline and model:  # rather than let one of them win silently
        raise UsageError("--pipeline names its own model, but --model was given too: leave one of them out")
    order = order_from_file(pipeline, task) if pipeline else order_from_advice(paths, task, model)
    trained = train_model(paths, with_suite(order, paths, folders), folders, **wanted)
    show(trained, as_json, lambda trained: trained.text())
    if trained.exit_code:
        sys.exit(trained.exit_code)


main.add_command(compare)


@main.command()
@click.argument("study")
@click.pass_obj
def report(root: Path, study: str) -> None:
    """Write reports/STUDY.html."""
    from harness.report.page import write_report

    click.echo(write_report(_paths(root), _study(root, study).name))


@main.command()
@click.argument("study", required=False)
@click.option("--watch", is_flag=True, help="Look again every few seconds, until no driver runs.")
@json_option
@click.pass_obj
def status(root: Path, study: str | None, watch: bool, as_json: bool) -> None:
    """Say what is done, running, left and failed, and what it has cost, of one study or of all; disturbs nothing."""
    from harness.cli.status import looks

    for rows in looks(_paths(root), study, watch):
        if watch and not as_json and sys.stdout.isatty():
            click.clear()
        show(rows, as_json, lambda rows: "\n".join(row.text() for row in rows) or "no studies yet")


@main.command("list")
@click.argument("kind", required=False)
@json_option
@click.pass_obj
def list_command(root: Path, kind: str | None, as_json: bool) -> None:
    """List what there is: methods, objectives, samplers, surrogates, sources, tasks, models, studies and other kinds, all if none is named."""
    from harness.cli.listing import inventory, inventory_text

    show(inventory(root, kind), as_json, inventory_text)


main.add_command(import_command)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format", "file_format", type=click.Choice(["csv", "parquet", "optuna"]), default="parquet", show_default=True
)
@click.option("--study", default=None, help="The study to export (optuna only).")
@click.pass_obj
def export(root: Path, folder: Path, file_format: str, study: str | None) -> None:
    """Write every table and view to FOLDER, or one study as an Optuna storage to the file FOLDER."""
    from harness.database.export import export_optuna, export_tables

    if file_format != "optuna":  # an Optuna storage is one file with one study, tables are files in a folder
        paths = export_tables(_paths(root), folder, file_format)
        click.echo("\n".join(map(str, paths)))
        return
    if study is None:
        raise UsageError("--format optuna must name one study, but got none: add --study NAME")
    click.echo(export_optuna(_paths(root), _study(root, study).name, folder))


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def convert(folder: Path) -> None:
    """Write the pickled weights of model FOLDER as safetensors, without running code that they may hold."""
    from harness.models.convert import convert as convert_weights

    click.echo(convert_weights(folder))


@main.command()
@click.option("--runner", help="Look at what its workers find, too, by a short job: see 'harness list runners'.")
@click.option("--runner-option", "options", multiple=True, metavar="KEY=VALUE")
@json_option
@click.pass_obj
def doctor(root: Path, runner: str | None, options: tuple[str, ...], as_json: bool) -> None:
    """Check this machine: versions, device, disk, cluster, and what each problem means."""
    from harness.cli.doctor import examination_text, examine
    from harness.cli.probe import probe

    if options and not runner:
        raise UsageError("--runner-option must go with the runner whose it is, but there is none: add --runner")
    findings = examine(root)
    if runner:
        findings += probe(runner, dict(pair(option) for option in options), root)
    show(findings, as_json, examination_text)
    if any(finding.level == "error" for finding in findings):  # scripts stop at it before a study is submitted
        sys.exit(1)


@main.command()
@click.option("--runner", default="local", show_default=True, help="Where to practise: see 'harness list runners'.")
@click.option("--runner-option", "options", multiple=True, metavar="KEY=VALUE")
@click.option("--node", is_flag=True, help="Take a node down, too, and up again; needs an operator of the cluster.")
@json_option
@click.pass_obj
def drill(root: Path, runner: str, options: tuple[str, ...], node: bool, as_json: bool) -> None:
    """Practise disasters on this site: kill Snakemake, worker, driver and job, and compare with an undisturbed run."""
    from harness.cli.drill import practise

    outcome = practise(runner, dict(pair(option) for option in options), root, node)
    show(outcome, as_json, lambda result: result.text())
    if not outcome.passed:
        sys.exit(1)


@main.command()
@click.argument("kind", type=click.Choice(["study", "task", "mapping"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of study files, task files or the mapping files of `import`, for editors."""
    document: Mapping[str, Any]
    if kind == "study":
        from harness.study.load import study_json_schema

        document = study_json_schema()
    elif kind == "mapping":
        from harness.foreign.mapping import Mapping as RunsMapping

        document = RunsMapping.model_json_schema()
    else:
        from harness.tasks.schema import task_json_schema

        document = task_json_schema()
    click.echo(json.dumps(document, indent=1))


@main.group()
def testbed() -> None:
    """The embedded base models and tasks."""


@testbed.command("build")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--model", "models", multiple=True, help="Pretrain this embedded model too; none if left out. Repeatable."
)
@click.option("--tokens", type=int, help="Pretraining tokens [default: the recipe's].")
def testbed_build(folder: Path, models: tuple[str, ...], tokens: int | None) -> None:
    """Rebuild the embedded data (bit for bit) and models (within the stated tolerance) into FOLDER."""
    from harness.testbed.build import build

    build(folder, models, tokens)
    click.echo(folder)


if __name__ == "__main__":
    main()
