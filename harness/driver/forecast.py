"""What a trial will take, before it runs: from past trials like it where there are any, else from a formula.

The formula's rates were measured with small models on one core of a server CPU, and are meant for the right order of
magnitude; a forecast says what it rests on, and `plan.json` keeps it beside what happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from harness.cost.price import money
from harness.driver.experiment import Experiment, ModelInfo, TaskInfo
from harness.records.paths import Paths
from harness.records.results import iterate_results
from harness.records.trial import Evaluation, Forecast, TrialConfig, TrialResult, TrialStatus
from harness.space import Params
from harness.study.spec import Prices
from harness.trial.packs import SHARED

FLOPS_PER_SECOND = {"cpu": 4e10, "cuda": 3e13}
"""Useful FLOPs per second of training a small model in one thread of a CPU, or on one GPU."""
CHARACTERS_PER_TOKEN = 3.0
"""Of English text in small vocabularies; large ones have about four."""
SECONDS_PER_SCORING = 0.5
"""What one scoring of one task costs apart from the model's work."""
SECONDS_PER_TRIAL = 1.0
CHOICES = 2
"""Sequences scored per item, about."""


@dataclass(frozen=True, kw_only=True)
class Occasion:
    """A trial to forecast, and where."""

    config: TrialConfig
    model: ModelInfo
    tasks: Mapping[str, TaskInfo]
    """Facts of its task and of the off-target suite, by name."""
    gpu: str | None
    """Name of the GPU that it holds, as prices are keyed by; None for a CPU."""
    threads: int
    prices: Prices

    @property
    def task(self) -> TaskInfo:
        """Its own task."""
        return self.tasks[self.config.task.name]


def occasion_of(experiment: Experiment, config: TrialConfig) -> Occasion:
    """A trial of a study, where the study's trials run."""
    site = experiment.site
    return Occasion(
        config=config,
        model=next(model for model in experiment.models if model.ref == config.pipeline.base_model),
        tasks={task.ref.name: task for task in (*experiment.tasks, *experiment.off_target)},
        gpu=site.gpu,
        threads=site.settings.threads,
        prices=experiment.spec.prices,
    )


@dataclass(frozen=True)
class Past:
    """Complete trials, by what makes their cost alike: base model and choices on all axes."""

    trials: Mapping[tuple[str, ...], Sequence[TrialResult]] = field(default_factory=dict)

    def like(self, config: TrialConfig) -> Sequence[TrialResult]:
        """Those with the trial's base model and choices: of its own task if there are any, else of all tasks."""
        alike = self.trials.get(kind(config), ())
        return [past for past in alike if past.config.task == config.task] or alike


def read_past(paths: Paths) -> Past:
    """Every complete trial on record."""
    trials: dict[tuple[str, ...], list[TrialResult]] = {}
    for _, result in iterate_results(paths):
        if isinstance(result, TrialResult) and result.status == TrialStatus.COMPLETE:
            trials.setdefault(kind(result.config), []).append(result)
    return Past(trials)


def forecast(occasion: Occasion, past: Past, alone: bool = False) -> Forecast:
    """Seconds, disk and money of one trial, and the memory that past ones took (see `driver/memory` for what is expected).

    Args:
        occasion: The trial, and where it will run.
        past: What ran before.
        alone: Whether seconds are to be those of a trial that trains alone, as budgets count them; otherwise they are
            its share of what a pack takes, as far as past trials trained in packs.
    """
    alike = past.like(occasion.config)
    return _from_past(occasion, alike, alone) if alike else _from_formula(occasion)


def _from_past(occasion: Occasion, alike: Sequence[TrialResult], alone: bool) -> Forecast:
    """Past trials scaled to this one: training by optimiser steps, everything else by scored items."""
    # Medians, since one trial on a busy machine or a slow disk must not count.
    work, items = occasion.config.steps_run, _scorings(occasion.config.evaluation, occasion)
    train = [_train_s(past, alone) / steps for past in alike if (steps := past.config.steps_run)]
    rest = [(past.cost.total_s - _train_s(past)) / max(1, sum(score.n for score in past.scores)) for past in alike]
    seconds = (median(train) * work if train else 0.0) + median(rest) * max(1, items)
    return Forecast(
        seconds=seconds,
        peak_memory_bytes=_past_peak(occasion.config, alike),
        artifact_bytes=_median(past.cost.artifact_bytes for past in alike),
        flops=_median(past.cost.flops / max(1, past.config.steps_run) for past in alike) * work,
        money=money(occasion.prices, seconds, occasion.threads, occasion.gpu),
        basis=f"{len(alike)} past trials of the same choices on {occasion.model.ref.name}",
    )


def _past_peak(config: TrialConfig, alike: Sequence[TrialResult]) -> float | None:
    """What past trials with the same batches took; None where there is none, or nobody measured."""
    peaks = [past.cost.peak_memory_bytes for past in alike if _batches(past.config) == _batches(config)]
    return _median(peaks) if any(peaks) else None


def _batches(config: TrialConfig) -> list[list[object]]:
    """What fixes the shape and the arithmetic of a trial's batches, by stage; None stands for a default."""
    return [[stage.params.get(name) for name in SHARED] for stage in config.pipeline.stages]


def _from_formula(occasion: Occasion) -> Forecast:
    """6 FLOPs per parameter that a token passes of training, 2 of scoring (Kaplan et al. 2020, arXiv:2001.08361, 2.1)."""
    passed = occasion.model.facts.active_parameters
    # Chat templates and special tokens make even an empty row some tokens long.
    counted = occasion.task.tokens.get(occasion.model.ref.name, occasion.task.chars / CHARACTERS_PER_TOKEN)
    tokens_per_row = max(8.0, counted)
    tokens = occasion.config.steps_run * _rows_per_step(occasion.config) * tokens_per_row
    scored = _scorings(occasion.config.evaluation, occasion) * CHOICES * tokens_per_row
    flops = 6 * passed * tokens
    # A GPU does the work whatever the number of CPU threads; on a CPU they share it.
    rate = FLOPS_PER_SECOND["cuda"] if occasion.gpu else FLOPS_PER_SECOND["cpu"] * occasion.threads
    evaluation = occasion.config.evaluation
    suite = [occasion.tasks[ref.name].tasks for ref in evaluation.off_target if ref.name in occasion.tasks]
    tasks = len(evaluation.fractions) * occasion.task.tasks + sum(suite)
    seconds = (flops + 2 * passed * scored) / rate + SECONDS_PER_SCORING * tasks + SECONDS_PER_TRIAL
    return Forecast(
        seconds=seconds,
        artifact_bytes=0.0,
        flops=flops,
        money=money(occasion.prices, seconds, occasion.threads, occasion.gpu),
    )


def kind(config: TrialConfig) -> tuple[str, ...]:
    """What makes the cost of two trials alike: base model, and the choices of every stage."""
    stages = config.pipeline.stages
    return (
        config.pipeline.base_model.name,
        *(f"{stage.method} {stage.objective} {stage.retention} {stage.curation}" for stage in stages),
    )


def _train_s(result: TrialResult, alone: bool = False) -> float:
    """Training seconds: the trial's share of its pack's, or what it would have taken `alone`."""
    cost = result.cost
    return float(cost.seconds.get("train", 0.0)) + (cost.solo_s - cost.total_s if alone else 0.0)


def _rows_per_step(config: TrialConfig) -> float:
    """Rows of an optimiser step, mean over stages by their shares."""
    return sum(
        stage.share * params.number("batch_size", 0) * params.number("gradient_accumulation", 1)
        for stage, params in ((stage, Params(stage.params)) for stage in config.pipeline.stages)
    )


def _scorings(evaluation: Evaluation, occasion: Occasion) -> int:
    """Items scored: the task at every point of the curve, the off-target suite once."""

    def items(name: str) -> int:
        return occasion.tasks[name].scored(evaluation.split, evaluation.limit) if name in occasion.tasks else 0

    suite = sum(items(ref.name) for ref in evaluation.off_target)
    return items(occasion.config.task.name) * len(evaluation.fractions) + suite


def _median(values: Iterable[float | None]) -> float:
    """Of the values that were measured; 0 where none was."""
    known = [value for value in values if value is not None]
    return float(median(known)) if known else 0.0
