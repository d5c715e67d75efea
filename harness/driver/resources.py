"""What a worker's job must be given so that the trials of a study end in it: main memory and time, from the forecasts.

A job is asked for before anybody knows which of the study's packs it will take, and serves the phases after its own too.
So what is foreseen holds for every trial of the study, each at its family's defaults; a search that goes beyond them, and
what a forecast gets wrong, is met by asking for more where a job had too little (`JobBackend.lengthen`, `enlarge`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from harness.cost.memory import CONTEXT_BYTES, MARGIN, PROCESS_BYTES, Memory
from harness.driver.experiment import Experiment
from harness.driver.forecast import Past, forecast, occasion_of, read_past
from harness.driver.memory import Needs
from harness.driver.trials import base_proposals, confirm_evaluation, search_cells
from harness.records.trial import TrialConfig
from harness.runners.base import Foreseen
from harness.trial.packs import alone_because

_BESIDE = 1.25
"""Factor for main memory that no forecast counts: rows, items, what libraries cache."""
_CARE_PAST, _CARE_FORMULA = 1.5, 3.0
"""Factors for seconds: past trials ran on some node, perhaps a quicker one; a formula is right in its order of magnitude."""


@dataclass(frozen=True)
class _Kind:
    """Trials that are alike, as far as a forecast can tell."""

    config: TrialConfig
    count: int
    """Of them, in all."""
    seconds: float
    """Of each, with care."""

    def pack(self, largest: int) -> int:
        """Trials of a pack at most."""
        return min(self.count, largest) if alone_because(self.config) is None else 1


def foresee(experiment: Experiment) -> Foreseen:
    """What the trials of a study, those of all phases, are expected to take of a worker."""
    site, needs = experiment.site, Needs(experiment)
    kinds, largest = list(_kinds(experiment, read_past(experiment.paths))), site.settings.pack
    memory = [_memory(experiment, needs.of(kind.config), kind.pack(largest)) for kind in kinds]
    return Foreseen(
        memory_bytes=_BESIDE * max(known) if (known := [one for one in memory if one]) else None,
        pack_s=max(kind.pack(largest) * kind.seconds for kind in kinds),
        worker_s=sum(kind.count * kind.seconds for kind in kinds) / site.workers,
    )


def _kinds(experiment: Experiment, past: Past) -> Iterator[_Kind]:
    seconds = partial(_seconds, experiment, past)
    for proposal in base_proposals(experiment):
        yield _Kind(proposal.config, 1, seconds(proposal.config))
    evaluation, budget = confirm_evaluation(experiment), experiment.spec.budget
    for cell in search_cells(experiment, {}):
        first = cell.design.config({}, cell.design.top)
        each = seconds(first)
        yield _Kind(first, max(1, int(budget.amount / each)) if budget.in_seconds else cell.planned_jobs, each)
        confirmed = replace(first, evaluation=evaluation)
        yield _Kind(confirmed, experiment.spec.confirm.seeds, seconds(confirmed))


def _seconds(experiment: Experiment, past: Past, config: TrialConfig) -> float:
    care = _CARE_PAST if past.like(config) else _CARE_FORMULA
    return care * forecast(occasion_of(experiment, config), past).seconds


def _memory(experiment: Experiment, one: Memory | None, pack: int) -> float | None:
    """Main memory of a worker that runs a pack.

    Args:
        experiment: Says what it runs on.
        one: What a trial of the pack holds alone, on its device; None where it is not known.
        pack: Trials that train together and share the base.
    """
    if one is None:
        return None
    if experiment.site.device_type == "cpu":
        return PROCESS_BYTES + MARGIN * (one.weights + pack * (one.peak - one.weights))
    # weights pass through it when they are loaded, and what trains when it is saved; CUDA's libraries have their own
    return PROCESS_BYTES + 2 * CONTEXT_BYTES + one.weights + pack * (one.trained + one.moments)
