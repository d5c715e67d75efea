"""The steps that run trials: the base's scores, the search, and the confirmation of its finalists.

Every family gets the same budget on every task and base model (a cell), is selected on validation scores only, and
the best families are run again with fresh seeds and scored once on the test split.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from harness.driver.display import Display
from harness.driver.loop import Driver, Proposal, Source, locked
from harness.driver.plan import guesses, plan_study
from harness.driver.resolve import Setting, Site, corpora, resolve
from harness.driver.sources import (
    FixedSource,
    SearchSource,
    base_proposals,
    confirm_proposals,
    restored_cells,
    search_cells,
)
from harness.errors import PartialFailure, SpecError
from harness.files import duration, write_atomically
from harness.records.lost_work import append_stop, read_stops
from harness.records.paths import Paths
from harness.records.study_trials import Member, Role, read_members
from harness.records.trial import to_json
from harness.runners.base import make_runner, parse_options
from harness.search.cell import Cell
from harness.study.spec import StudySpec
from harness.workers.worker import Duty

__all__ = ["Member", "Site", "Summary", "read_members", "run_base", "run_confirm", "run_search"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a step did."""

    study: str
    step: Role
    trials: int
    """Trials that the step consists of, reused and earlier ones included."""
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

    @property
    def exit_code(self) -> int:
        """0 when everything asked about has a score, 4 when something has none."""
        return PartialFailure.exit_code if self.without_score else 0

    def text(self) -> str:
        """A few lines for people."""
        cost = duration(self.seconds) + (f", {self.money:.2f}" if self.money is not None else "")
        lines = [
            f"{self.step} of {self.study}: {self.trials} trials ({self.ran} ran now, {self.reused} reused from other "
            f"studies, {self.failed} failed), {cost} of trial time"
        ]
        lines += [f"no score: {what}" for what in self.without_score]
        return "\n".join([*lines, *self.notes])


def run_base(study: StudySpec, site: Site, setting: Setting | None = None) -> Summary:
    """Score the base models as they are, on validation and on test, by the same code path as every other trial.

    Args:
        study: What is asked.
        site: Where it runs.
        setting: The study's names, resolved; None resolves them here.

    Raises:
        SpecError: When the study, or something that it names, is wrong.
        UsageError: For an unknown runner or option.
        StorageError: When records cannot be written; those that could are kept.
        HarnessError: When another driver runs the study, or workers cannot start.
    """
    with _opened(study, site, setting) as step:
        source = FixedSource(list(base_proposals(study, step.setting)))
        step.drive("base", source, [])
        return step.finish("base", source.planned, source.without_score())


def run_search(study: StudySpec, site: Site, setting: Setting | None = None) -> Summary:
    """Spend every family's tuning budget; see `run_base` for arguments and errors."""
    with _opened(study, site, setting) as step:
        cells = search_cells(study, step.setting, guesses(study, site, step.setting))
        files = site.paths.study(study.name)
        source = SearchSource(cells, read_stops(site.paths, study.name), partial(append_stop, files))
        step.drive("search", source, source.restore(step.members))
        _remove_checkpoints(site.paths, cells)
        without = [cell.design.label for cell in cells if cell.best() is None]
        notes = [cell.note for cell in cells if cell.note]
        return step.finish("search", sum(len(cell.results) for cell in cells), without, notes)


def run_confirm(study: StudySpec, site: Site, setting: Setting | None = None) -> Summary:
    """Run the finalists again with fresh seeds and score them on the test split; see `run_base`.

    Finalists of a task and base model are the families with the best validation scores at full fidelity. Every
    finalist gets the same seeds, so that families can be compared seed by seed.

    Raises:
        SpecError: Also when the study was not searched to its end.
    """
    with _opened(study, site, setting, last=True) as step:
        if not site.paths.study(study.name).done("search").exists():
            raise SpecError(f"{study.name} must be searched before it is confirmed: run 'harness search {study.name}'")
        cells = restored_cells(site.paths, search_cells(study, step.setting, {}), step.members)
        source = FixedSource(list(confirm_proposals(study, step.setting, cells)))
        step.drive("confirm", source, [])
        return step.finish("confirm", source.planned, source.without_score())


@dataclass(frozen=True)
class _Step:
    """A study that this process drives at the moment."""

    study: StudySpec
    site: Site
    setting: Setting
    members: Sequence[Member]
    driver: Driver

    def drive(self, role: Role, source: Source, earlier: Sequence[Proposal]) -> None:
        """Run a step's trials to the end."""
        title = f"{self.study.name} {role}"
        with Display(title, self.site.display, self.study.prices.currency) as display:
            self.driver.run(source, earlier, display)

    def finish(self, role: Role, trials: int, without_score: Sequence[str], notes: Sequence[str] = ()) -> Summary:
        """Mark the step as done, and sum it up."""
        tally = self.driver.tally
        summary = Summary(
            study=self.study.name,
            step=role,
            trials=trials,
            ran=tally.ran,
            reused=tally.reused,
            failed=sum(count for status, count in tally.statuses.items() if not status.has_scores),
            seconds=tally.seconds,
            money=tally.money,
            without_score=tuple(without_score),
            notes=(*self.setting.notes, *notes),
        )
        write_atomically(self.site.paths.study(self.study.name).done(role), summary.text() + "\n")
        return summary


@contextmanager
def _opened(study: StudySpec, site: Site, setting: Setting | None, last: bool = False) -> Iterator[_Step]:
    """The study's folder, claimed for this study and for this process; workers stay warm for the next step, if any."""
    options = parse_options(site.runner, site.options)
    files = site.paths.study(study.name)
    check_folder(site.paths, study)
    with locked(files):
        runner = make_runner(site.runner, options, files, _duty(study, site, options))
        try:
            if not any(files.done(role).exists() for role in ("search", "confirm")[last:]):
                runner.expect(len(study.families) * len(study.tasks) * len(study.base_models))
            setting = setting or resolve(study, site)
            write_atomically(files.spec, _study_json(study))
            for kind, facts in setting.features.items():
                write_atomically(files.facts(kind), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
            _keep_plan(study, site, setting)
            members = read_members(site.paths, study.name)
            yield _Step(study, site, setting, members, Driver(study.name, site, runner, members, options["pack"]))
        except BaseException:
            runner.close()
            raise
        if last:
            runner.close()
        else:
            runner.leave()


def check_folder(paths: Paths, study: StudySpec) -> None:
    """Raise `SpecError` if the study's output folder belongs to another study."""
    path = paths.study(study.name).spec
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text()).get("fingerprint")
    except (ValueError, AttributeError):
        found = None
    if found != study.fingerprint:
        raise SpecError(
            f"{path.parent} must hold this study's output, but holds that of another study (fingerprint {found}, not "
            f"{study.fingerprint}): rename this study, or delete that folder (its trials' records stay)"
        )


def _study_json(study: StudySpec) -> str:
    return json.dumps({"fingerprint": study.fingerprint, "study": study.model_dump(mode="json")}, indent=1) + "\n"


def _keep_plan(study: StudySpec, site: Site, setting: Setting) -> None:
    """What was expected before the first trial, kept beside what happens; a budget that funds nothing ends here."""
    path = site.paths.study(study.name).plan
    if not path.exists():
        write_atomically(path, json.dumps(to_json(plan_study(study, site, setting)), indent=1) + "\n")


def _duty(study: StudySpec, site: Site, options: Mapping[str, Any]) -> Duty:
    from harness.trial.workspace import Workspace

    paths = Paths(site.paths.results.resolve(), site.paths.reports.resolve())
    workspace = Workspace(
        paths=paths,
        task_folders=tuple(folder.resolve() for folder in site.task_folders),
        device=site.device,
        threads=options["threads"],
        prices=study.prices,
        keep_checkpoint=study.search.scheduler != "none",
        time_limit_s=60 * options["time_limit_min"] if "time_limit_min" in options else None,
        together=options["pack"],
        corpora=corpora(study),
    )
    return Duty(paths.study(study.name).queue, site.work, workspace, options["idle_s"])


def _remove_checkpoints(paths: Paths, cells: Sequence[Cell]) -> None:
    """What rungs left behind is of no use once the search is over."""
    for config in (cell.config(job) for cell in cells for job in cell.results):
        shutil.rmtree(paths.checkpoint(config.key), ignore_errors=True)
        full = config.at(1.0).key
        shutil.rmtree(paths.rungs(full), ignore_errors=True)
        with suppress(OSError):  # it holds a record, or never was
            paths.trial(full).rmdir()
