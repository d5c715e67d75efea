"""What a study may cost in all: nothing new starts that is expected to take it over `budget.gpu_hours` or `budget.money`.

What was spent is everything on the study's bill: its records, failures included, and attempts that left no record. What
runs counts as it is expected to cost. It is let end, so a study may go over its budget by what was expected too low.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.cost.price import money
from harness.driver.experiment import Experiment
from harness.driver.forecast import Past, forecast, kind, occasion_of, read_past
from harness.errors import BudgetReached, SpecError
from harness.files import now
from harness.records.bill import Bill, Halt, Share, bill_of, fewer, total, write_halt
from harness.records.lost_work import lost_seconds
from harness.records.results import find_result
from harness.records.study_trials import Member, is_reused
from harness.records.trial import TrialConfig, TrialResult, TrialStatus

_LATEST = 50
"""Trials of one kind that the next one's cost is expected from."""
_CARE = 3
"""How often a guess by a formula counts, which is meant for the right order of magnitude only."""


@dataclass(frozen=True)
class Cap:
    """One of the two things that a study may say of what it costs in all."""

    name: str
    """Of its key below `budget`."""
    most: float
    unit: str

    def of(self, bill: Bill) -> float:
        """How much of it was used."""
        return bill.hours if self.name == "gpu_hours" else bill.money or 0.0


def caps(experiment: Experiment) -> list[Cap]:
    """What a study says of what it may cost in all.

    Raises:
        SpecError: When money is limited but its prices do not say what the site's hours cost.
    """
    budget, site = experiment.spec.budget, experiment.site
    if budget.money is not None and _price(experiment, 1.0) is None:
        what = "prices.cpu_hour" if site.gpu is None else f"prices.gpu_hour.{site.gpu}"
        raise SpecError(
            f"budget.money must be counted by the study's prices, but these have none for what its trials run on: add {what}"
        )
    unit = "GPU hours" if site.gpu else "hours"
    both = (("gpu_hours", budget.gpu_hours, unit), ("money", budget.money, experiment.spec.prices.currency))
    return [Cap(name, most, unit) for name, most, unit in both if most is not None]


def _price(experiment: Experiment, seconds: float) -> float | None:
    site = experiment.site
    return money(experiment.spec.prices, seconds, site.settings.threads, site.gpu)


class Allowance:
    """What a study may still cost. One that names no limit may cost anything, and nothing is counted."""

    def __init__(self, experiment: Experiment, members: Sequence[Member]) -> None:
        """Take a study and its trials so far, those of all phases.

        Raises:
            SpecError: When money is limited, and cannot be counted.
        """
        self.experiment, self.caps = experiment, caps(experiment)
        self.spent = Bill()
        self.reached = False
        """Whether something was not started for what it would have cost; nothing is from then on."""
        self._running: dict[str, Bill] = {}
        """What is expected of each trial that was started and has not ended, by key."""
        self._charged: set[str] = set()
        self._recent: dict[tuple[str, ...], deque[TrialResult]] = {}
        if self.caps:
            self._begin(members)

    def _begin(self, members: Sequence[Member]) -> None:
        paths, study = self.experiment.paths, self.experiment.name
        for member in members:
            result = find_result(paths, member.key)
            if result is not None and not is_reused(member, result, study):
                self.charge(result)
        self.lose(sum(lost_seconds(paths, study).values()))
        if not self._recent:
            for of_kind in read_past(paths).trials.values():
                for result in of_kind:
                    self._learn(result)

    def admits(self, config: TrialConfig) -> bool:
        """Whether a trial may start: with what is expected of it, what runs ends within the study's budget.

        Args:
            config: The trial. It counts as running from now on, if it may; one that ran before is asked about anew.
        """
        if not self.caps:
            return True
        self._running.pop(config.key, None)
        expected = self._expected(config)
        bill = total([self.spent, *self._running.values(), expected])
        self.reached = self.reached or any(cap.of(bill) > cap.most for cap in self.caps)
        if not self.reached:
            self._running[config.key] = expected
        return not self.reached

    def settle(self, key: str) -> None:
        """A trial does not run any more."""
        self._running.pop(key, None)

    def charge(self, result: TrialResult) -> None:
        """Count what a trial of the study cost, once."""
        if not self.caps or (key := result.config.key) in self._charged:
            return
        self._charged.add(key)
        bill = bill_of(result.cost)
        unpriced = Bill(money=_price(self.experiment, bill.seconds)) if bill.money is None else Bill()
        self.spent += bill + unpriced
        self._learn(result)

    def lose(self, seconds: float) -> None:
        """Count wall seconds that no record has."""
        if self.caps:
            self.spent += self._bill(seconds)

    def raise_if_reached(self, phase: str, left: int, shares: Mapping[str, Share]) -> None:
        """Say what was spent and what is left undone, and keep it for reports, where something was not started.

        Args:
            phase: That ended early.
            left: Trials that it leaves undone, about.
            shares: How far each family is.

        Raises:
            BudgetReached: When the budget was reached.
        """
        if not self.reached:
            return
        spent = " and ".join(f"{cap.of(self.spent):.3g} of {cap.most:g} {cap.unit}" for cap in self.caps)
        names = " and ".join(f"budget.{cap.name}" for cap in self.caps)
        unequal = f" ({short}: not to be compared as if their budgets were equal)" if (short := fewer(shares)) else ""
        text = (
            f"{self.experiment.name} has spent {spent}, and what would start next is expected to take more than the rest, so "
            f"about {left} trials of {phase} are left undone{unequal}: raise {names} in the study file and type the same "
            "command again to go on; everything recorded is kept"
        )
        write_halt(self.experiment.files, Halt(phase=phase, text=text, families=shares, at=now()))
        raise BudgetReached(text)

    def _expected(self, config: TrialConfig) -> Bill:
        expected = forecast(occasion_of(self.experiment, config), Past(self._recent))
        return self._bill(expected.seconds * (_CARE if expected.basis == "formula" else 1))

    def _bill(self, seconds: float) -> Bill:
        """What wall seconds of a worker cost."""
        return Bill(seconds=seconds, hours=seconds / 3600, money=_price(self.experiment, seconds))

    def _learn(self, result: TrialResult) -> None:
        if result.status == TrialStatus.COMPLETE:
            self._recent.setdefault(kind(result.config), deque(maxlen=_LATEST)).append(result)
