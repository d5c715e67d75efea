"""What the confirm phase could tell apart on each task, and the smallest one that would tell apart what matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import TYPE_CHECKING

from harness.driver.experiment import Experiment, TaskInfo
from harness.files import duration
from harness.records.paths import Paths
from harness.records.results import find_result
from harness.records.study_trials import read_members

if TYPE_CHECKING:
    from harness.analysis.power import Contest

DEFAULT_SEED_SD = 0.02
"""Standard deviation of a score over seeds, where no confirmed trials are on record: typical of accuracies on
small fine-tuning tasks (of metrics on another scale, as a share of it; Dodge et al. 2020, arXiv:2002.06305, report 0.01 to 0.03)."""


@dataclass(frozen=True, kw_only=True)
class Enough:
    """A confirm phase that finds the smallest difference that matters, with 80% power."""

    seeds: int
    items: int | None
    """Of the test split; None where items are no sample of others."""
    seconds: float
    """Trial time of all finalists on this task."""

    def text(self) -> str:
        """Its size, and what it takes."""
        items = "" if self.items is None else f" and {self.items:,} test items"
        return f"{self.seeds} seeds{items} ({duration(self.seconds)})"


@dataclass(frozen=True, kw_only=True)
class Detectable:
    """What the confirm phase could tell apart on one task."""

    task: str
    difference: float | None
    """Smallest difference between two families found with 80% power at level 0.05, in units of the task's metric."""
    width: float | None
    """From the lowest to the highest value of the metric, beyond which no difference goes; None where that is not known."""
    basis: str
    in_points: bool = False
    """Whether the metric is a share, whose differences are shown in points."""
    smallest: float | None = None
    """Smallest difference that matters to the study, in units of the task's metric."""
    present: int | None = None
    """Test items that there are."""
    enough: Enough | None = None
    """The cheapest that finds it, with no more items than there are if that is possible."""
    more_seeds: Enough | None = None
    """The planned items, with as many seeds as it takes."""
    more_items: Enough | None = None
    """The planned seeds, with as many items as it takes."""

    def text(self) -> str:
        """The difference and what it was computed from, or why there is none; then what would find one that matters."""
        if self.difference is None:
            return self.basis
        needed = self._needed()
        if self.width is not None and self.difference >= self.width:
            return f"cannot tell families apart ({self.basis}): take more seeds or items{needed}"
        return f"{in_unit(self.difference, self.in_points)} or more ({self.basis}){needed}"

    def _needed(self) -> str:
        if self.smallest is None:
            return ""
        head = f"; {in_unit(self.smallest, self.in_points)}, the smallest that matters, would take "
        if self.enough is None:
            return f"{head}more seeds or items than anybody has"
        text = head + self.enough.text()
        if self.present is not None and (self.enough.items or 0) > self.present:
            text += f", more items than the {self.present:,} that there are"
        ways = [("seeds", self.more_seeds), ("items", self.more_items)]
        alone = [(way.seconds, f"{what} alone {way.text()}") for what, way in ways if way is not None]
        said = [
            f"{'cheaper by ' if place == 0 and len(alone) > 1 else ''}{s}" for place, (_, s) in enumerate(sorted(alone))
        ]
        said += [f"{what} alone do not" for what, way in ways if way is None and self.enough.items is not None]
        return "; ".join([text, *said]) if self.enough.items is not None else text


def in_unit(difference: float, in_points: bool) -> str:
    """A difference as the report shows it, without sign.

    Args:
        difference: In units of the metric.
        in_points: Whether the metric is a share.
    """
    return f"{100 * difference:.1f} points" if in_points else f"{difference:.3f}"


Price = Callable[[TaskInfo, int | None], float]
"""Seconds of one confirmed run on a task, scored on at most so many items of each of its tasks."""


def detectable_on(experiment: Experiment, price: Price) -> tuple[Detectable, ...]:
    """By task, what the verdict would find, and what that was assumed from.

    Args:
        experiment: The study.
        price: What a confirmed run takes.
    """
    measured = _seed_sds(experiment.paths, experiment.spec.tasks)
    return tuple(_on_task(experiment, task, measured.get(task.ref.name, []), price) for task in experiment.tasks)


def _on_task(experiment: Experiment, task: TaskInfo, measured: Sequence[float], price: Price) -> Detectable:
    """A metric on a scale scatters with its items; of another one nothing is known before its spread was measured."""
    from harness.analysis.power import Contest

    spec, name, width = experiment.spec, task.ref.name, task.scale.width
    seeds, in_points = spec.confirm.seeds, task.scale.is_share
    if not measured and not width:
        return Detectable(task=name, difference=None, width=width, basis="unknown before seed spread was measured")
    # Variances average, standard deviations do not.
    unit = width or 1.0
    sd = math.sqrt(sum(value**2 for value in measured) / len(measured)) if measured else DEFAULT_SEED_SD * unit
    items = (task.scored("test", spec.confirm.limit) or None) if width else None
    basis = f"{seeds} seeds, " + (f"{items or 'all'} test items, " if width else "")
    basis += f"standard deviation {in_unit(sd, in_points)}"
    families = "family" if len(measured) == 1 else "families"
    basis += f" over seeds of {len(measured)} confirmed {families}" if measured else " over seeds assumed"
    contest = Contest(
        families=max(spec.confirm.finalists, 2),
        seed_sd=sd / unit,
        tasks=len(spec.tasks) * len(spec.base_models),
        sampled=items is not None,
    )
    difference = contest.detectable(seeds, items)
    smallest = spec.smallest_difference / 100 if width else None
    runs = contest.families * len(experiment.models)
    ways = (None, None, None) if smallest is None else _ways(contest, smallest, seeds, items, _Bill(task, price, runs))
    return Detectable(
        task=name,
        difference=None if difference is None else difference * unit,
        width=width,
        basis=basis,
        in_points=in_points,
        smallest=None if smallest is None else smallest * unit,
        present=task.scored("test", None) if items else None,
        enough=ways[0],
        more_seeds=ways[1],
        more_items=ways[2],
    )


class _Bill:
    """What the confirmation of a task takes, by its size."""

    def __init__(self, task: TaskInfo, price: Price, runs: int) -> None:
        self.present = task.scored("test", None)
        few = task.scored("test", 1)
        self._runs, least, most = runs, price(task, 1), price(task, None)
        # past the items that there are, each one more takes what these take
        self._item_s = (most - least) / (self.present - few) if self.present > few else 0.0
        self._run_s = least - few * self._item_s

    def seconds(self, seeds: int, items: int | None) -> float:
        """Trial time of all finalists on all base models."""
        return self._runs * seeds * (self._run_s + (items or 0) * self._item_s)


def _ways(
    contest: Contest, smallest: float, seeds: int, items: int | None, bill: _Bill
) -> tuple[Enough | None, Enough | None, Enough | None]:
    """The cheapest way to find a difference, that by seeds alone, and that by items alone."""
    from harness.analysis.power import MOST_ITEMS

    def way(seeds: int | None, items: int | None) -> Enough | None:
        return None if seeds is None else Enough(seeds=seeds, items=items, seconds=bill.seconds(seeds, items))

    by_seeds = way(contest.fewest_runs(smallest, items), items)
    if items is None:
        return by_seeds, by_seeds, None
    more = contest.fewest_items(smallest, seeds, items)
    by_items = None if more is None else way(seeds, more)
    best = contest.cheapest(smallest, items, bill.present, bill.seconds)
    ways = [way(*best) if best else None, by_seeds, by_items if (more or math.inf) <= bill.present else None]
    if not any(ways):
        best = contest.cheapest(smallest, items, MOST_ITEMS, bill.seconds)
        ways = [way(*best) if best else None]
    return min(filter(None, ways), key=lambda one: one.seconds, default=None), by_seeds, by_items


def _seed_sds(paths: Paths, tasks: Collection[str]) -> dict[str, list[float]]:
    """By task, the standard deviation over seeds of every family that this or another study has confirmed on it."""
    deviations: dict[str, list[float]] = {}
    for other in paths.studies():
        groups: dict[tuple[str, str, str], list[float]] = {}
        for member in read_members(paths, other.name):
            if member.role != "confirm" or member.task not in tasks:
                continue
            result = find_result(paths, member.key)
            if result is not None and result.target is not None:
                groups.setdefault((member.task, member.base_model, member.family), []).append(result.target.value)
        for (task, *_), values in groups.items():
            if len(values) > 1:
                deviations.setdefault(task, []).append(stdev(values))
    return deviations
