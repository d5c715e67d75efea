"""The phases that run trials: the base's scores, the search, and the confirmation of its finalists.

Every family gets the same budget on every task and base model (a cell), is selected on validation scores only, and
the best families are run again with fresh seeds and scored once on the test split.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from harness.driver.display import Display
from harness.driver.experiment import Experiment, Site
from harness.driver.loop import Driver
from harness.driver.plan import guesses, plan_study
from harness.driver.receipts import read_receipt, write_receipt
from harness.driver.resolve import resolve
from harness.driver.resources import foresee
from harness.driver.sources import FixedSource, Proposal, SearchSource, Source
from harness.driver.trials import base_proposals, confirm_proposals, restored_cells, search_cells
from harness.errors import PartialFailure, SpecError
from harness.files import duration, parse_json, write_atomically
from harness.records.codec import Json, to_json
from harness.records.lost_work import append_stop, read_stops
from harness.records.paths import Paths, StudyPaths
from harness.records.study_trials import Role, read_members
from harness.records.turns import my_turn
from harness.runners.base import Runner, make_runner
from harness.search.cell import Cell
from harness.study.spec import StudySpec
from harness.workers.worker import Duty


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a phase did."""

    study: str
    phase: Role = field(metadata={"json": "step"})
    trials: int
    """Trials that the phase consists of, reused and earlier ones included."""
    ran: int
    """Trials that ran now."""
    reused: int
    """Trials whose records other studies had made before."""
    failed: int
    seconds: float
    """Wall seconds of its trials, lost attempts included, reused ones left out."""
    money: float | None
    without_score: tuple[str, ...]
    """What has no score at all although its budget is spent: cells, base scores, or finalists."""
    notes: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    """After the confirmation, what can be said: a line for each task."""

    @property
    def exit_code(self) -> int:
        """0 when everything asked about has a score, 4 when something has none."""
        return PartialFailure.exit_code if self.without_score else 0

    def text(self) -> str:
        """A few lines for people."""
        cost = duration(self.seconds) + (f", {self.money:.2f}" if self.money is not None else "")
        lines = [
            f"{self.phase} of {self.study}: {self.trials} trials ({self.ran} ran now, {self.reused} reused from other "
            f"studies, {self.failed} failed), {cost} of trial time"
        ]
        lines += [f"no score: {what}" for what in self.without_score]
        return "\n".join([*lines, *self.notes, *self.verdicts])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the trials of a phase came to."""

    trials: int
    """Those of earlier drivers included."""
    without_score: Sequence[str]
    """What has no score at all."""
    notes: Sequence[str] = ()


def run_phase(
    role: Role,
    spec: StudySpec,
    site: Site,
    resolve: Callable[[StudySpec, Site], Experiment] = resolve,
    said: Callable[[], Sequence[str]] = tuple,
) -> Summary:
    """Run the trials of one phase of a study that have no record yet; waits while another driver runs the study.

    Args:
        role: `base` scores the base models as they are, on validation and on test. `search` spends every family's
            tuning budget. `confirm` runs the finalists again with fresh seeds and scores them on the test split.
        spec: What is asked.
        site: Where it runs.
        resolve: Resolves what the study names, while workers start.
        said: Gives what the study's confirmed records say by now, a line for each task.

    Raises:
        SpecError: When the study, or something that it names, is wrong; for `confirm` also when the study was not
            searched to its end.
        StorageError: When records cannot be written; those that could are kept.
        HarnessError: When workers cannot start, or when trials were lost to their site too often.
    """
    with _open_runner(role, spec, site) as runner:
        experiment = resolve(spec, site)
        _keep_study(experiment)
        runner.foresee(partial(foresee, experiment))
        if (known := read_receipt(experiment, role, duty(spec, site))) is not None:
            return replace(_from_receipt(known), verdicts=tuple(said()) if role == "confirm" else ())
        told = said if role == "confirm" else tuple  # before, nothing is confirmed that anything could be said of
        driver = Driver(experiment, runner, read_members(site.paths, spec.name), told)
        outcome = _PHASES[role](experiment, driver)
        driver.raise_if_put_off()
        summary = _summary(role, driver, outcome)
        write_atomically(experiment.files.done(role), summary.text() + "\n")
        write_receipt(experiment, role, duty(spec, site), to_json(replace(summary, ran=0)))
    return summary


def _from_receipt(known: Json) -> Summary:
    """A phase's summary as `to_json` wrote it, which nobody has changed since."""
    return Summary(**{"phase": known.pop("step"), **{name: _tuple(value) for name, value in known.items()}})


def _tuple(value: Json) -> Json:
    return tuple(value) if isinstance(value, list) else value


def _base(experiment: Experiment, driver: Driver) -> Outcome:
    """Score the base models by the same code path as every other trial."""
    source = FixedSource(list(base_proposals(experiment)))
    _drive("base", experiment, driver, source)
    return Outcome(trials=source.planned, without_score=source.without_score())


def _search(experiment: Experiment, driver: Driver) -> Outcome:
    """Spend every family's tuning budget."""
    paths = experiment.paths
    cells = search_cells(experiment, guesses(experiment))
    source = SearchSource(cells, read_stops(paths, experiment.name), partial(append_stop, experiment.files))
    _drive("search", experiment, driver, source, source.restore(driver.members))
    _remove_checkpoints(paths, cells)
    return Outcome(
        trials=sum(len(cell.history.results) for cell in cells),
        without_score=[cell.design.label for cell in cells if cell.best() is None],
        notes=[cell.note for cell in cells if cell.note],
    )


def _confirm(experiment: Experiment, driver: Driver) -> Outcome:
    """Run the finalists again with fresh seeds and score them on the test split.

    Finalists of a task and base model are the families with the best validation scores at full fidelity. Every
    finalist gets the same seeds, so that families can be compared seed by seed.
    """
    name = experiment.name
    if not experiment.files.done("search").exists():
        raise SpecError(f"{name} must be searched before it is confirmed: run 'harness search {name}'")
    cells = restored_cells(experiment, driver.members, driver.known)
    source = FixedSource(list(confirm_proposals(experiment, cells)))
    _drive("confirm", experiment, driver, source)
    return Outcome(trials=source.planned, without_score=source.without_score())


_PHASES: Mapping[Role, Callable[[Experiment, Driver], Outcome]] = {
    "base": _base,
    "search": _search,
    "confirm": _confirm,
}


def _drive(
    role: Role, experiment: Experiment, driver: Driver, source: Source, earlier: Sequence[Proposal] = ()
) -> None:
    """Run a phase's trials to the end, with a display."""
    title, currency = f"{experiment.name} {role}", experiment.spec.prices.currency
    with Display(title, experiment.site.display, currency) as display:
        driver.run(source, earlier, display)
    shares = source.shares
    left = sum(max(0, share.planned - share.ended) for share in shares.values())
    driver.allowance.raise_if_reached(role, left, shares)
    experiment.files.halt.unlink(missing_ok=True)


def _summary(role: Role, driver: Driver, outcome: Outcome) -> Summary:
    experiment, tally = driver.experiment, driver.tally
    return Summary(
        study=experiment.name,
        phase=role,
        trials=outcome.trials,
        ran=tally.ran,
        reused=tally.reused,
        failed=tally.failed,
        seconds=tally.seconds,
        money=tally.money,
        without_score=(*outcome.without_score, *experiment.refused.values()),
        notes=(*experiment.notes, *outcome.notes, *driver.known.notes),
        verdicts=tuple(driver.said()),
    )


@contextmanager
def _open_runner(role: Role, spec: StudySpec, site: Site) -> Iterator[Runner]:
    """The study's folder, claimed for this study and for this process; workers stay warm for the next phase, if any."""
    check_folder(site.paths, spec)
    told, files = duty(spec, site), site.paths.study(spec.name)
    with my_turn(files.lock, f"runs {files.name}"):
        packs = len(spec.families) * len(spec.tasks) * len(spec.base_models) if _trials_to_come(role, files) else 0
        runner = make_runner(site.runner, site.settings, files, told)
        try:
            # Workers import their libraries while this process resolves what the study names.
            runner.expect(packs)
            yield runner
        except BaseException:  # an interrupt, too: workers must not go on without a driver
            runner.close()
            raise
        if role == "confirm":
            runner.close()
        else:
            runner.leave()


def _trials_to_come(role: Role, files: StudyPaths) -> bool:
    """Whether workers will be needed: what was complete once has its records, unless somebody deleted some."""
    phases: tuple[Role, ...] = ("confirm",) if role == "confirm" else ("search", "confirm")
    return not any(files.done(phase).exists() for phase in phases)


def check_folder(paths: Paths, study: StudySpec) -> None:
    """Check that the study's folder is its own.

    Args:
        paths: Where studies' folders are.
        study: What is asked.

    Raises:
        SpecError: When the folder holds the output of another study of the same name.
    """
    path = paths.study(study.name).spec
    if not path.exists():
        return
    try:
        holder = parse_json(path.read_text()).get("fingerprint")
    except (ValueError, AttributeError):  # damaged: nobody can say whose output it is
        holder = None
    if holder != study.fingerprint:
        raise SpecError(
            f"{path.parent} must hold this study's output, but holds that of another study (fingerprint {holder}, not "
            f"{study.fingerprint}): rename this study, or delete that folder (its trials' records stay)"
        )


def _keep_study(experiment: Experiment) -> None:
    """Keep in the study's folder what is asked, what its names stand for, and what was expected before the first trial.

    Raises:
        SpecError: When the budget funds no trial; then nothing is kept, and the study may be mended under its name.
    """
    files, spec = experiment.files, experiment.spec
    contents: dict[Path, object] = {
        files.spec: {
            "fingerprint": spec.fingerprint,
            "study": spec.model_dump(mode="json"),
            "refused": dict(experiment.refused),
        },
        **{files.facts(kind): features for kind, features in experiment.features.items()},
    }
    if not files.plan.exists():  # a later one would rest on this study's own trials
        contents[files.plan] = to_json(plan_study(experiment))
    for path, content in contents.items():
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def duty(spec: StudySpec, site: Site) -> Duty:
    """What workers are told when their jobs are submitted.

    Args:
        spec: What is asked.
        site: Where it runs.
    """
    from harness.trial.workspace import Workspace, checkpoint_seconds

    settings = site.settings
    # Absolute, since a worker on another node starts in another folder.
    paths = Paths(site.paths.results.resolve(), site.paths.reports.resolve())
    workspace = Workspace(
        paths=paths,
        task_folders=tuple(folder.resolve() for folder in site.task_folders),
        device=site.device,
        threads=settings.threads,
        prices=spec.prices,
        keep_checkpoint=spec.search.scheduler != "none",
        time_limit_s=60 * settings.time_limit_min if settings.time_limit_min else None,
        checkpoint_s=checkpoint_seconds(settings.checkpoint_min),
        together=settings.pack,
        corpora=spec.corpora,
        study=spec.name,
    )
    # what the study names was fetched when it was resolved: a hub that is down must not hold up every job
    environment = {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
    return Duty(paths.study(spec.name).queue, site.work, workspace, settings.idle_s, environment=environment)


def _remove_checkpoints(paths: Paths, cells: Sequence[Cell]) -> None:
    """What rungs left behind is of no use once the search is over."""
    several = [cell for cell in cells if cell.design.top]  # with one rung there is nothing to go on from
    for config in (cell.config(job) for cell in several for job in cell.history.results):
        shutil.rmtree(paths.checkpoint(config.key), ignore_errors=True)
        full = config.at(1.0).key  # the trial at full fidelity lists its rungs, whether or not it ever ran
        shutil.rmtree(paths.rungs(full), ignore_errors=True)
        with suppress(OSError):  # it holds a record, or never was
            paths.trial(full).rmdir()
