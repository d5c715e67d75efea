"""What a study will take and what it could find, before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev

from harness.driver.forecast import Occasion, Past, forecast, read_past
from harness.driver.resolve import Setting, Site, TaskInfo, device, resolve
from harness.driver.sources import base_proposals, confirm_evaluation, search_cells
from harness.errors import SpecError
from harness.files import duration
from harness.records.paths import Paths
from harness.records.results import find_result
from harness.records.study_trials import Role, read_members
from harness.records.trial import Forecast, TrialConfig
from harness.runners.base import parse_options
from harness.search.cell import Cell
from harness.study.spec import StudySpec

DEFAULT_SEED_SD = 0.02
"""Standard deviation of a score over seeds, where no confirmed trials are on record: typical of accuracies on
small fine-tuning tasks (Dodge et al. 2020, arXiv:2002.06305, report 0.01 to 0.03)."""
RECORD_BYTES = 12_000
"""A record, and its items per item scored below."""
ITEM_BYTES = 60


@dataclass(frozen=True)
class StepPlan:
    """One step of a study."""

    step: Role
    trials: int
    seconds: float
    """Wall seconds of its trials, summed."""
    recorded: int
    """Trials that have a record already; they cost nothing. Known for the base step only."""


@dataclass(frozen=True)
class Detectable:
    """What the confirm step could tell apart on one task."""

    task: str
    difference: float | None
    """Smallest difference between two families found with 80% power at level 0.05, in units of the task's metric."""
    share: bool
    """Whether higher is better, so that no difference can exceed 1."""
    basis: str

    def text(self) -> str:
        """In words."""
        if self.difference is None:
            return self.basis
        if self.share and self.difference >= 1:
            return f"cannot tell families apart ({self.basis}): take more seeds or items"
        return f"{self.difference:.3f} or more ({self.basis})"


@dataclass(frozen=True)
class Plan:
    """What a study will take."""

    study: str
    steps: tuple[StepPlan, ...]
    families: Mapping[str, Forecast]
    """One full search trial of each family, mean over tasks and base models."""
    workers: int
    wall_s: float
    """Seconds until the end with that many workers."""
    disk_bytes: float
    money: float | None
    currency: str
    detectable: tuple[Detectable, ...]
    """By task of the study."""
    notes: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """Trials of all steps."""
        return sum(step.trials for step in self.steps)

    @property
    def hours(self) -> float:
        """Trial time of all steps in hours."""
        return sum(step.seconds for step in self.steps) / 3600

    def text(self) -> str:
        """A page for people."""
        lines = [f"{self.study}: {self.trials} trials, {duration(self.hours * 3600)} of trial time"]
        lines += [f"  {step.step:<8} {step.trials:>5} trials  {duration(step.seconds):>9}" for step in self.steps]
        lines += [f"with {self.workers} at a time, done after about {duration(self.wall_s)}"]
        lines += [f"disk: {self.disk_bytes / 1e6:.1f} MB"]
        if self.money is not None:
            lines.append(f"money: {self.money:.2f} {self.currency}")
        lines.append("one full search trial:")
        lines += [f"  {name:<24} {duration(f.seconds):>9}  (from {f.basis})" for name, f in self.families.items()]
        lines.append("the confirm step can tell two families apart if they differ by:")
        lines += [f"  {one.task:<24} {one.text()}" for one in self.detectable]
        return "\n".join([*lines, *self.notes])


def plan_study(study: StudySpec, site: Site, setting: Setting | None = None) -> Plan:
    """Forecast a study.

    Args:
        study: What is asked.
        site: Where it would run.
        setting: The study's names, resolved; None resolves them here.

    Raises:
        SpecError: When the study is wrong or cannot fund one trial per family.
        UsageError: For an unknown runner or option.
    """
    options = parse_options(site.runner, site.options)
    setting = setting or resolve(study, site)
    past = read_past(site.paths)
    outlook = _Outlook(study, setting, past, device(site), options["threads"])
    steps = (outlook.base(site.paths), outlook.search(), outlook.confirm())
    seconds = sum(step.seconds for step in steps)
    workers = 1 if site.runner == "inline" else options["workers"]
    return Plan(
        study=study.name,
        steps=steps,
        families=outlook.families(),
        workers=workers,
        wall_s=seconds / workers,
        disk_bytes=outlook.disk_bytes(steps),
        money=outlook.money(seconds),
        currency=study.prices.currency,
        detectable=_detectable(study, setting, site.paths),
        notes=setting.notes,
    )


def guesses(study: StudySpec, site: Site, setting: Setting) -> dict[str, float]:
    """Expected seconds of a full search trial by family, where the budget is in seconds; empty where it is not.

    Raises:
        SpecError: When the budget cannot fund one trial per family.
    """
    if study.budget.gpu_seconds is None:
        return {}
    options = parse_options(site.runner, site.options)
    return _Outlook(study, setting, read_past(site.paths), device(site), options["threads"]).guesses()


class _Outlook:
    """Forecasts of a study's trials."""

    def __init__(self, study: StudySpec, setting: Setting, past: Past, on: str, threads: int) -> None:
        self.study, self.setting, self.past, self.on, self.threads = study, setting, past, on, threads
        self.tasks = {task.ref.name: task for task in (*setting.tasks, *setting.off_target)}
        self.cells = search_cells(study, setting, {})
        self.full = [(cell, self.of(_first(cell))) for cell in self.cells]
        self.alone = [(cell, self.of(_first(cell), alone=True)) for cell in self.cells]
        self._check_budget()

    def of(self, config: TrialConfig, alone: bool = False) -> Forecast:
        """One trial, as its share of a pack or as it would be `alone`."""
        model = next(model for model in self.setting.models if model.ref == config.pipeline.base_model)
        occasion = Occasion(config, model, self.tasks, self.on, self.threads, self.study.prices)
        return forecast(occasion, self.past, alone)

    def guesses(self) -> dict[str, float]:
        """Seconds of a full search trial by family, alone."""
        return {name: found.seconds for name, found in _by_family(self.alone).items()}

    def families(self) -> dict[str, Forecast]:
        """One full search trial of each family, mean over cells."""
        return _by_family(self.full)

    def base(self, paths: Paths) -> StepPlan:
        """The base's scores."""
        configs = [proposal.config for proposal in base_proposals(self.study, self.setting)]
        recorded = [config for config in configs if find_result(paths, config.key) is not None]
        seconds = sum(self.of(config).seconds for config in configs if config not in recorded)
        return StepPlan("base", len(configs), seconds, len(recorded))

    def search(self) -> StepPlan:
        """Every cell's budget; with a scheduler, jobs at rungs count as trials."""
        if self.study.budget.gpu_seconds is not None:
            budget, alone = self.study.budget.gpu_seconds, [one.seconds for _, one in self.alone]
            shares = [one.seconds / solo for (_, one), solo in zip(self.full, alone, strict=True)]
            trials = sum(max(1, int(budget / solo)) for solo in alone)
            return StepPlan("search", trials, budget * sum(shares), 0)
        seconds = sum(min(cell.design.budget, cell.size) * one.seconds for cell, one in self.full)
        return StepPlan("search", sum(cell.planned_jobs for cell in self.cells), seconds, 0)

    def confirm(self) -> StepPlan:
        """Finalists times seeds; which families they are is not known yet, so the mean family counts."""
        evaluation = confirm_evaluation(self.study, self.setting)
        each = [self.of(replace(_first(cell), evaluation=evaluation)).seconds for cell in self.cells]
        arenas = len(self.setting.models) * len(self.setting.tasks)
        count = arenas * min(self.study.confirm.finalists, len(self.setting.families)) * self.study.confirm.seeds
        return StepPlan("confirm", count, count * sum(each) / len(each), 0)

    def money(self, seconds: float) -> float | None:
        """What these seconds cost at the study's prices, as far as the forecasts have prices."""
        priced = [one for _, one in self.full if one.money is not None and one.seconds > 0]
        return sum(one.money / one.seconds for one in priced if one.money) / len(priced) * seconds if priced else None

    def disk_bytes(self, steps: Sequence[StepPlan]) -> float:
        """Records and items; checkpoints are removed after the search, models are not kept."""
        evaluation = confirm_evaluation(self.study, self.setting)
        sizes = [min(t.items.get("test", 0), evaluation.limit or 10**9) for t in self.tasks.values()]
        return sum(step.trials for step in steps) * (RECORD_BYTES + ITEM_BYTES * sum(sizes))

    def _check_budget(self) -> None:
        budget = self.study.budget.gpu_seconds
        for cell, one in self.alone:
            if budget is not None and one.seconds > budget:
                raise SpecError(
                    f"budget.gpu_seconds must fund at least one trial per family, but {budget:g} s is less than the "
                    f"{one.seconds:.3g} s that one trial of {cell.design.label} is expected to take (from {one.basis}): "
                    "raise it, or lower the training steps"
                )


def _first(cell: Cell) -> TrialConfig:
    return cell.design.config({}, len(cell.design.rungs) - 1)


def _by_family(cells: Sequence[tuple[Cell, Forecast]]) -> dict[str, Forecast]:
    found: dict[str, list[Forecast]] = {}
    for cell, one in cells:
        found.setdefault(cell.design.family.name, []).append(one)
    return {name: _mean(forecasts) for name, forecasts in found.items()}


def _mean(forecasts: Sequence[Forecast]) -> Forecast:
    count = len(forecasts)
    money = [one.money for one in forecasts if one.money is not None]
    return Forecast(
        seconds=sum(one.seconds for one in forecasts) / count,
        peak_memory_bytes=max(one.peak_memory_bytes for one in forecasts),
        artifact_bytes=sum(one.artifact_bytes for one in forecasts) / count,
        flops=sum(one.flops for one in forecasts) / count,
        money=sum(money) / len(money) if money else None,
        basis="; ".join(sorted({one.basis for one in forecasts})),
    )


def _detectable(study: StudySpec, setting: Setting, paths: Paths) -> tuple[Detectable, ...]:
    """By task, what the paired test over seeds finds, and what that was assumed from."""
    measured = _seed_sds(study, paths)
    return tuple(_detectable_on(task, study, measured.get(task.ref.name, [])) for task in setting.tasks)


def _detectable_on(task: TaskInfo, study: StudySpec, measured: Sequence[float]) -> Detectable:
    """A share scatters with its items; of another metric nothing is known before its spread was measured."""
    from harness.analysis.statistics import minimal_detectable_difference

    name, share, seeds = task.ref.name, task.higher_is_better, study.confirm.seeds
    if seeds < 2:
        return Detectable(name, None, share, "unknown with fewer than two seeds")
    if not measured and not share:
        return Detectable(name, None, share, "unknown before seed spread was measured")
    sd = math.sqrt(sum(value**2 for value in measured) / len(measured)) if measured else DEFAULT_SEED_SD
    size = task.items.get("test", 0)
    items = (min(size, study.confirm.limit or size) or None) if share else None
    basis = f"{seeds} seeds, " + (f"{items or 'all'} test items, " if share else "") + f"standard deviation {sd:.3f}"
    families = "family" if len(measured) == 1 else "families"
    basis += f" over seeds of {len(measured)} confirmed {families}" if measured else " over seeds assumed"
    return Detectable(name, minimal_detectable_difference(seeds, sd, items), share, basis)


def _seed_sds(study: StudySpec, paths: Paths) -> dict[str, list[float]]:
    """By task, the standard deviation over seeds of every family that this or another study has confirmed on it."""
    deviations: dict[str, list[float]] = {}
    for other in paths.studies():
        groups: dict[tuple[str, str, str], list[float]] = {}
        for member in read_members(paths, other.name):
            if member.role != "confirm" or member.task not in study.tasks:
                continue
            result = find_result(paths, member.key)
            if result is not None and result.target is not None:
                groups.setdefault((member.task, member.base_model, member.family), []).append(result.target.value)
        for (task, *_), values in groups.items():
            if len(values) > 1:
                deviations.setdefault(task, []).append(stdev(values))
    return deviations
