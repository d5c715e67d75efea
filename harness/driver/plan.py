"""What a study will take and what it could find, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.driver.allowance import caps
from harness.driver.detect import Detectable, detectable_on
from harness.driver.experiment import Experiment, TaskInfo
from harness.driver.forecast import forecast, occasion_of, read_past
from harness.driver.memory import FamilyMemory, Needs
from harness.driver.reach import Reach, reaches
from harness.driver.trials import base_proposals, confirm_evaluation, search_cells
from harness.errors import PartialFailure, SpecError
from harness.files import duration
from harness.records.bill import Bill
from harness.records.results import find_result
from harness.records.study_trials import Role
from harness.records.trial import Forecast, TrialConfig
from harness.search.cell import Cell

RECORD_BYTES = 12_000
"""A record, and its items per item scored below."""
ITEM_BYTES = 60


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """One phase of a study."""

    phase: Role = field(metadata={"json": "step"})
    trials: int
    seconds: float
    """Wall seconds of its trials, summed."""
    recorded: int = 0
    """Trials that have a record already; they cost nothing. Known for the base phase only."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will take."""

    study: str
    phases: tuple[PhasePlan, ...] = field(metadata={"json": "steps"})
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
    refused: Mapping[str, str] = field(default_factory=dict)
    """Base models that are left out, each with the reason."""
    memory: tuple[FamilyMemory, ...] = ()
    """Of a search trial, by family and base model: the task whose rows need most."""
    reach: tuple[Reach, ...] = ()
    """Share of the base's weights that methods reach, by family and base model."""

    @property
    def trials(self) -> int:
        """Trials of all phases."""
        return sum(phase.trials for phase in self.phases)

    @property
    def hours(self) -> float:
        """Trial time of all phases in hours."""
        return sum(phase.seconds for phase in self.phases) / 3600

    def text(self) -> str:
        """A page for people."""
        lines = [f"{self.study}: {self.trials} trials, {duration(self.hours * 3600)} of trial time"]
        lines += [f"  {one.phase:<8} {one.trials:>5} trials  {duration(one.seconds):>9}" for one in self.phases]
        lines += [f"with {self.workers} at a time, done after about {duration(self.wall_s)}"]
        lines += [f"disk: {self.disk_bytes / 1e6:.1f} MB"]
        if self.money is not None:
            lines.append(f"money: {self.money:.2f} {self.currency}")
        lines.append("one full search trial:")
        lines += [f"  {name:<24} {duration(f.seconds):>9}  (from {f.basis})" for name, f in self.families.items()]
        lines += ["memory of one trial at most, at its family's defaults, by what holds it:"] if self.memory else []
        lines += [f"  {one.text()}" for one in self.memory]
        lines += ["weights of the base that move, or in whose place stands what moves:"] if self.reach else []
        lines += [f"  {one.text()}" for one in self.reach]
        lines.append("the confirm phase can tell two families apart if they differ by:")
        lines += [f"  {one.task:<24} {one.text()}" for one in self.detectable]
        left_out = [f"left out: {reason}" for reason in self.refused.values()]
        return "\n".join([*lines, *left_out, *self.notes])

    @property
    def exit_code(self) -> int:
        """0, or 4 where a part of what is asked cannot be done."""
        return PartialFailure.exit_code if self.refused else 0


def plan_study(experiment: Experiment) -> Plan:
    """Forecast a study.

    Raises:
        SpecError: When the budget cannot fund one trial per family.
    """
    outlook = _Outlook(experiment)
    phases = (outlook.base(), outlook.search(), outlook.confirm())
    seconds = sum(phase.seconds for phase in phases)
    workers = experiment.site.workers
    return Plan(
        study=experiment.name,
        phases=phases,
        families=outlook.families(),
        workers=workers,
        wall_s=seconds / workers,
        disk_bytes=outlook.disk_bytes(phases),
        money=outlook.money(seconds),
        currency=experiment.spec.prices.currency,
        detectable=detectable_on(experiment, outlook.confirmation),
        memory=outlook.needs.families(outlook.cells),
        reach=reaches(experiment),
        notes=(*experiment.notes, *outlook.notes(), *outlook.over(seconds)),
        refused=experiment.refused,
    )


def guesses(experiment: Experiment) -> dict[str, float]:
    """Expected seconds of a full search trial by family, where the budget is in seconds; empty where it is not.

    Raises:
        SpecError: When the budget cannot fund one trial per family.
    """
    return _Outlook(experiment).guesses() if experiment.spec.budget.in_seconds else {}


class _Outlook:
    """Forecasts of a study's trials."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.spec = experiment, experiment.spec
        self.past, self.needs = read_past(experiment.paths), Needs(experiment)
        self.gpu = experiment.site.gpu
        self.tasks = {task.ref.name: task for task in (*experiment.tasks, *experiment.off_target)}
        self.cells = search_cells(experiment, {})
        self.full = [(cell, self._with_memory(_first(cell))) for cell in self.cells]
        self.alone = [(cell, self.of(_first(cell), alone=True)) for cell in self.cells]
        self._check_budget()

    def of(self, config: TrialConfig, alone: bool = False) -> Forecast:
        """The forecast of one trial.

        Args:
            config: The trial.
            alone: Whether it is to be that of a trial that trains alone, not of its share of a pack.
        """
        return forecast(occasion_of(self.experiment, config), self.past, alone)

    def _with_memory(self, config: TrialConfig) -> Forecast:
        """The forecast of a trial, with the memory that it needs where no past trial says what it takes."""
        one = self.of(config)
        return replace(one, peak_memory_bytes=one.peak_memory_bytes or self.needs.measured(config))

    def guesses(self) -> dict[str, float]:
        """Seconds of a full search trial by family, alone."""
        return {name: mean.seconds for name, mean in _by_family(self.alone).items()}

    def families(self) -> dict[str, Forecast]:
        """One full search trial of each family, mean over cells."""
        return _by_family(self.full)

    def base(self) -> PhasePlan:
        """The base's scores."""
        configs = [proposal.config for proposal in base_proposals(self.experiment)]
        missing = [config for config in configs if find_result(self.experiment.paths, config.key) is None]
        return PhasePlan(
            phase="base",
            trials=len(configs),
            seconds=sum(self.of(config).seconds for config in missing),
            recorded=len(configs) - len(missing),
        )

    def search(self) -> PhasePlan:
        """Every cell's budget; with a scheduler, jobs at rungs count as trials."""
        budget = self.spec.budget
        if budget.in_seconds:
            alone = [one.seconds for _, one in self.alone]
            # Budgets count what trials would take alone; what they do take is their share of a pack.
            shares = [one.seconds / solo for (_, one), solo in zip(self.full, alone, strict=True)]
            trials = sum(max(1, int(budget.amount / solo)) for solo in alone)
            return PhasePlan(phase="search", trials=trials, seconds=budget.amount * sum(shares))
        seconds = sum(min(budget.amount, cell.spending.size) * one.seconds for cell, one in self.full)
        return PhasePlan(phase="search", trials=sum(cell.planned_jobs for cell in self.cells), seconds=seconds)

    def confirm(self) -> PhasePlan:
        """Finalists times seeds; which families they are is not known yet, so the mean family counts."""
        evaluation, confirm = confirm_evaluation(self.experiment), self.spec.confirm
        each = [self.of(replace(_first(cell), evaluation=evaluation)).seconds for cell in self.cells]
        finalists = min(confirm.finalists, len(self.experiment.families))
        count = len(self.experiment.arenas) * finalists * confirm.seeds
        return PhasePlan(phase="confirm", trials=count, seconds=count * sum(each) / len(each))

    def confirmation(self, task: TaskInfo, limit: int | None) -> float:
        """Seconds of one confirmed run, mean over families.

        Args:
            task: What is tuned for.
            limit: Items scored of each task.
        """
        evaluation = replace(confirm_evaluation(self.experiment), limit=limit)
        cells = [cell for cell in self.cells if cell.design.task == task.ref]
        return sum(self.of(replace(_first(cell), evaluation=evaluation)).seconds for cell in cells) / len(cells)

    def money(self, seconds: float) -> float | None:
        """What the study costs at its prices; None where there are none.

        Args:
            seconds: Wall seconds of all trials.
        """
        priced = [one for _, one in self.full if one.money is not None and one.seconds > 0]
        return sum(one.money / one.seconds for one in priced if one.money) / len(priced) * seconds if priced else None

    def notes(self) -> list[str]:
        """What a reader must know beside money and memory."""
        site, notes = self.experiment.site, []
        if site.device_type == "cuda" and site.memory is None:
            notes.append(
                "memory: how much a GPU of this site has is not known, so no trial was refused for it: set runner option gpu_gb"
            )
        return notes + self._unpriced()

    def _unpriced(self) -> list[str]:
        named = self.spec.prices.gpu_hour.keys() - {"default"}
        if self.gpu != "default" or not named:
            return []
        priced = "its price is taken to be" if "default" in self.spec.prices.gpu_hour else "there is no price without"
        return [f"money: which GPU a trial will get is not known before it runs, so {priced} prices.gpu_hour.default"]

    def over(self, seconds: float) -> list[str]:
        """What the study will probably not come to the end of.

        Args:
            seconds: Wall seconds of all trials.
        """
        expected = Bill(seconds=seconds, hours=seconds / 3600, money=self.money(seconds))
        return [
            f"budget.{cap.name}: about {used:.3g} {cap.unit} are expected, but the study may take {cap.most:g}: it will "
            "probably stop before its end; raise that, or lower what is to be done"
            for cap in caps(self.experiment)
            if (used := cap.of(expected)) > cap.most
        ]

    def disk_bytes(self, phases: Sequence[PhasePlan]) -> float:
        """Records and items; checkpoints are removed after the search, models are not kept."""
        evaluation = confirm_evaluation(self.experiment)
        sizes = [task.scored("test", evaluation.limit) for task in self.tasks.values()]
        return sum(phase.trials for phase in phases) * (RECORD_BYTES + ITEM_BYTES * sum(sizes))

    def _check_budget(self) -> None:
        budget = self.spec.budget.gpu_seconds
        for cell, one in self.alone:
            if budget is not None and one.seconds > budget:
                raise SpecError(
                    f"budget.gpu_seconds must fund at least one trial per family, but {budget:g} s is less than the "
                    f"{one.seconds:.3g} s that one trial of {cell.design.label} is expected to take (from {one.basis}): "
                    "raise it, or lower the training steps"
                )


def _first(cell: Cell) -> TrialConfig:
    """A full trial at the defaults: it stands for all trials of its cell."""
    return cell.design.config({}, cell.design.top)


def _by_family(cells: Sequence[tuple[Cell, Forecast]]) -> dict[str, Forecast]:
    forecasts: dict[str, list[Forecast]] = {}
    for cell, one in cells:
        forecasts.setdefault(cell.design.family.name, []).append(one)
    return {name: _mean(of_family) for name, of_family in forecasts.items()}


def _mean(forecasts: Sequence[Forecast]) -> Forecast:
    count = len(forecasts)
    money = [one.money for one in forecasts if one.money is not None]
    return Forecast(
        seconds=sum(one.seconds for one in forecasts) / count,
        # A machine must hold the largest of them; the rest are sums, of which a mean is the share.
        peak_memory_bytes=max((size for one in forecasts if (size := one.peak_memory_bytes)), default=None),
        artifact_bytes=sum(one.artifact_bytes for one in forecasts) / count,
        flops=sum(one.flops for one in forecasts) / count,
        money=sum(money) / len(money) if money else None,
        basis="; ".join(sorted({one.basis for one in forecasts})),
    )
