"""Packs: which trials can train together on one base, which must run alone and why, and how trials are cut into packs.

A pack is what a worker takes at once. Trials of a pack that are `alike` train together (see `fused`); the rest of a
pack runs one after the other. Nothing here loads torch: the driver cuts packs, too.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

from harness.methods.base import HOOKS
from harness.plugins import AXIS_FOLDER, load, overrides
from harness.records.codec import fingerprint, to_json
from harness.records.trial import Stage, TrialConfig
from harness.space import defaults
from harness.study.family import stage_space

LARGEST = 8
"""Trials of a pack unless the runner is told otherwise. On a CPU more gain little, and a lost worker loses all of them."""
SHARED = ("batch_size", "gradient_accumulation", "max_length", "precision")
"""Settings of the optimiser that fix the shape or the arithmetic of a batch."""


def alone_because(config: TrialConfig) -> str | None:
    """Why a trial cannot train together with others, or None if it can."""
    if len(config.pipeline.stages) > 1:
        return "its stages follow each other, each on the model that the last one left"
    stage = config.pipeline.stages[0]
    method, objective = load("methods", stage.method), load("objectives", stage.objective)
    retention = load("retention", stage.retention)
    if not method.needs_training or config.stage_steps(stage) == 0:
        return "it trains nothing"
    if not objective.fuses:
        return f"objective {stage.objective} trains with a trainer of its own"
    if method.alone:
        return f"method {stage.method}: {method.alone}"
    for hook, what in HOOKS.items():
        if overrides(method, hook):
            return f"method {stage.method} {what}"
    if overrides(retention, "penalty"):
        return f"retention {stage.retention} adds a term to the loss"
    if overrides(retention, "finish"):
        return f"retention {stage.retention} changes the trained weights at the end"
    return None


def alike(config: TrialConfig) -> str:
    """Fingerprint of what trials that train together must have in common, whether or not this one can.

    Steps, fidelity, seed, learning rate, schedule, regularisation, and what shapes the method's own parameters may
    differ; so may the rows, which each trial draws for itself.
    """
    common = [_common(stage) for stage in config.pipeline.stages]
    return fingerprint([to_json(part) for part in (config.pipeline.base_model, config.task, config.evaluation, common)])


def kindred(config: TrialConfig) -> str:
    """Fingerprint of what decides whether training together pays: the base and what trains it, whatever the task is."""
    return fingerprint([to_json(config.pipeline.base_model), [_common(stage) for stage in config.pipeline.stages]])


def _common(stage: Stage) -> dict[str, object]:
    choices = {axis: getattr(stage, axis) for axis in AXIS_FOLDER}
    params = defaults(stage_space(choices)) | dict(stage.params)
    method, objective = load("methods", stage.method), load("objectives", stage.objective)
    equal = {*SHARED, *method.same, *objective.same}
    return {
        **choices,
        "data": [stage.data, stage.data_fingerprint],
        "params": {name: params[name] for name in sorted(equal) if name in params},
    }


def portion(left: int, workers: int, largest: int) -> int:
    """Trials to put into the next pack while more will follow, so that the last packs of all workers end together.

    Args:
        left: Trials that no worker has been given yet.
        workers: Packs that run at a time.
        largest: Most trials of a pack.
    """
    rounds = max(1, math.ceil(left / (workers * largest)))
    return max(1, math.ceil(left / (rounds * workers)))


def cut(
    configs: Sequence[TrialConfig], workers: int, largest: int, busy: Sequence[int] = ()
) -> list[list[TrialConfig]]:
    """Cut trials into packs: what can train together stays together, as far as no worker idles at the end.

    Packs of a base model stay together, since a worker keeps one in memory; of those, the larger come first. The order
    of trials is kept inside their group.

    Args:
        configs: Trials, none of them twice.
        workers: Packs that will run at a time.
        largest: Most trials of a pack.
        busy: Trials of each pack that runs or waits already.
    """
    groups: dict[str, list[TrialConfig]] = {}
    for index, config in enumerate(configs):
        kind = alike(config) if alone_because(config) is None else f"alone {index}"
        groups.setdefault(kind, []).append(config)
    counts = _counts([len(group) for group in groups.values()], _loads([0] * workers, busy), largest)
    packs = []
    for group, count in zip(groups.values(), counts, strict=True):
        ends = [len(group) * part // count for part in range(count + 1)]
        packs += [group[start:end] for start, end in pairwise(ends)]
    models = list(dict.fromkeys(config.pipeline.base_model for config in configs))
    return sorted(packs, key=lambda pack: (models.index(pack[0].pipeline.base_model), -len(pack)))


def _counts(sizes: Sequence[int], loads: Sequence[int], largest: int) -> list[int]:
    """Into how many packs each group is cut: the fewest, then one group after the other finer while all end sooner."""
    counts, workers = [math.ceil(size / largest) for size in sizes], len(loads)
    span, ideal = _span(sizes, counts, loads), math.ceil((sum(sizes) + sum(loads)) / workers)
    while span > ideal:
        finer = (
            [count + more * (index == chosen) for index, count in enumerate(counts)]
            for more in range(1, workers + 1)
            for chosen in range(len(sizes))
            if counts[chosen] + more <= sizes[chosen]
        )
        better = next((found for found in finer if _span(sizes, found, loads) < span), None)
        if better is None:
            break
        counts, span = better, _span(sizes, better, loads)
    return counts


def _span(sizes: Sequence[int], counts: Sequence[int], loads: Sequence[int]) -> int:
    """Trials of the busiest worker in the end."""
    packs = (
        size * (part + 1) // count - size * part // count
        for size, count in zip(sizes, counts, strict=True)
        for part in range(count)
    )
    return max(_loads(loads, packs))


def _loads(loads: Sequence[int], packs: Iterable[int]) -> list[int]:
    """Trials of each worker, if each takes the largest pack that is left when it is free."""
    heap = sorted(loads)
    for pack in sorted(packs, reverse=True):
        heapq.heapreplace(heap, heap[0] + pack)
    return heap
