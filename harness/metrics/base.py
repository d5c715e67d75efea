"""The author's contract for a metric of our own, and how lm-eval comes to know it.

One file per metric; its stem is what a task's `metric_list` names. Its entry there may hold `settings` of its own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, ClassVar

from harness.errors import SpecError, one_of
from harness.plugins import load, load_all, names, overrides
from harness.records.scale import Scale

Settings = Mapping[str, Any]
"""Of a metric's entry in a task file: its own keys, with what YAML can hold."""
LM_EVALS = ("metric", "aggregation", "higher_is_better", "hf_evaluate")
"""Keys of a metric's entry that are lm-eval's."""
SHARE = Scale(low=0.0, high=1.0)
LM_EVAL_SCALES: Mapping[str, Scale] = {
    **dict.fromkeys(("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "exact_match", "f1"), SHARE),
    "mcc": Scale(low=-1.0, high=1.0),
    "brier_score": Scale(low=0.0, high=2.0),
    **dict.fromkeys(("bleu", "chrf", "chrf++"), Scale(low=0.0, high=100.0)),
    "ter": Scale(low=0.0),
    "bits_per_byte": Scale(low=0.0),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), Scale(low=1.0)),
}
"""What the functions of lm-eval's registry return, which itself says directions only (`lm_eval/api/metrics.py`). A task that
computes a metric of such a name by code of its own is another matter: see `tasks.scale`."""


_HUNDRED, _GAP = Scale(low=0.0, high=100.0), Scale(low=-100.0, high=100.0)
_FOLLOWED = {f"{level}_level_{kind}_acc": SHARE for level in ("prompt", "inst") for kind in ("strict", "loose")}
LM_EVAL_TASK_SCALES: Mapping[str, Mapping[str, Scale]] = {
    "agieval": dict.fromkeys(("acc", "acc_norm"), SHARE),
    "coqa": dict.fromkeys(("em", "f1"), SHARE),
    "drop": dict.fromkeys(("em", "f1"), SHARE),
    "hendrycks_math": {"exact_match": SHARE},
    "humaneval": {"pass_at_k": SHARE},
    "ifeval": _FOLLOWED,
    "leaderboard/ifeval": _FOLLOWED,
    "leaderboard/math": dict.fromkeys(("exact_match", "exact_match_original"), SHARE),
    "mbpp": {"pass_at_1": SHARE},
    "minerva_math": dict.fromkeys(("exact_match", "math_verify"), SHARE),
    "truthfulqa": {"acc": SHARE}
    | {
        f"{name}_{kind}": scale
        for name in ("bleu", "rouge1", "rouge2", "rougeL")
        for kind, scale in (("max", _HUNDRED), ("acc", SHARE), ("diff", _GAP))
    },
}
"""What code beside lm-eval's own task files computes, by its folder: nobody else declares it. Each was read there (version 0.4.13)."""


class Surprise(StrEnum):
    """In which unit a metric says how unlikely a model finds texts that are given; the probability of each token follows."""

    PERPLEXITY = "perplexity"
    """One over the geometric mean of the probabilities: among how many equally likely ones the model wavers."""
    BITS = "bits"
    """Minus the mean of their logarithms to base 2."""


LM_EVAL_SURPRISES: Mapping[str, Surprise] = {
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), Surprise.PERPLEXITY),
    "bits_per_byte": Surprise.BITS,
}
"""Which of lm-eval's metrics are such (`lm_eval/api/metrics.py`)."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An item with what a model answered."""

    doc: Mapping[str, object]
    answers: Sequence[Any]
    """Of multiple choice a log-likelihood in nats for each choice, of a given answer its own; else the generated texts after
    the task's filter."""
    choices: tuple[str, ...]
    """An answer that is given counts as the only choice."""
    gold: int
    """The right choice; -1 where there are no choices."""
    settings: Settings
    """The metric's own, defaults filled in."""


class Measure(ABC):
    """Says what an item is worth, and what many are."""

    summary: ClassVar[str]
    """One line: what it measures."""
    paper: ClassVar[str] = ""
    """Authors, year and arXiv id or URL of the source; empty when there is none."""
    output_types: ClassVar[tuple[str, ...]]
    """Of tasks that it can score."""
    higher_is_better: ClassVar[bool] = True
    scale: ClassVar[Scale] = Scale()
    """Between which values its totals lie."""
    surprise: ClassVar[Surprise | None] = None
    """Of a metric that says how unlikely given texts are, its unit."""
    every_sample: ClassVar[bool] = False
    """Whether it wants all of an item's `repeats`, where the task names no filter."""
    runs_code: ClassVar[bool] = False
    """Whether it runs what a model wrote, which a task must allow with `unsafe_code: true`."""
    settings: ClassVar[Settings] = {}
    """Keys of its entry in `metric_list`, with their defaults."""

    def check(self, settings: Settings, where: str) -> None:
        """Refuse settings that cannot be; by default unknown ones.

        Args:
            settings: Of a metric's entry, with defaults filled in.
            where: Task file and metric, for the error message.

        Raises:
            SpecError: When a setting is unknown or its value cannot be.
        """
        for key in settings:
            if key not in self.settings:
                raise SpecError(f"{where}: " + one_of("key", str(key), [*LM_EVALS, *self.settings]))

    @abstractmethod
    def item(self, answered: Answered) -> Any:
        """What one item contributes; a number, if the measure is the mean of its items."""

    def total(self, items: Sequence[Any]) -> float:
        """The measure of many items; by default their mean."""
        return math.fsum(items) / len(items)

    def value(self, item: Any) -> float:
        """The measure of one item alone; NaN where it has none."""
        return float(item) if isinstance(item, int | float) else math.nan


@cache
def measure(name: str) -> Measure | None:
    """The metric of ours that has this name, or None."""
    if name not in names("metrics"):
        return None
    instance: Measure = load("metrics", name)()
    return instance


def measure_of(entry: Settings) -> Measure | None:
    """The metric of ours that an entry of a task's `metric_list` names; a function of the task's own has no other meaning."""
    named = entry.get("metric")
    return None if callable(named) else measure(str(named))


@cache
def surprises() -> Mapping[str, Surprise]:
    """Metrics that say how unlikely a model finds given texts, lm-eval's and ours, by name."""
    own = {name: kind.surprise for name, kind in load_all("metrics").items()}
    return {**LM_EVAL_SURPRISES, **{name: surprise for name, surprise in own.items() if surprise}}


def guessing(values: Sequence[float], choices: Sequence[int]) -> float | None:
    """The mean score of guessing among items' choices.

    Args:
        values: Of each item.
        choices: How many each has.

    Returns:
        None where an item has no choices, or is something else than right or wrong.
    """
    if not values or not all(choices) or not set(values) <= {0.0, 1.0}:
        return None
    return math.fsum(1 / count for count in choices) / len(choices)


def majority(values: Sequence[float], answers: Sequence[str | None]) -> float | None:
    """The mean score of giving every item the same answer: the one that is most often right.

    Args:
        values: Of each item.
        answers: The right one of each.

    Returns:
        None where an item has no one right answer, or is something else than right or wrong.
    """
    if not values or None in answers or not set(values) <= {0.0, 1.0}:
        return None
    return max(Counter(answers).values()) / len(answers)


def settings_of(entry: Settings, where: str) -> Settings:
    """The settings of a metric of ours, with defaults for what its entry leaves out.

    Args:
        entry: Of the task's `metric_list`.
        where: The task file, for error messages.

    Raises:
        SpecError: For an unknown key or a value that cannot be.
    """
    name = str(entry["metric"])
    own = load("metrics", name)()
    settings = dict(own.settings) | {key: value for key, value in entry.items() if key not in LM_EVALS}
    own.check(settings, f"{where}: metric {name}")
    return settings


def checked(entry: dict[str, Any], config: Settings, where: str) -> None:
    """Complete a metric's entry where it names one of ours: its aggregation has its name.

    Args:
        entry: Of the task's `metric_list`; completed in place.
        config: The task's keys.
        where: Prefix of error messages.

    Raises:
        SpecError: When the metric does not suit the task, or its settings cannot be.
    """
    name = str(entry["metric"])
    ours = measure(name)
    if ours is None:
        return
    place = f"{where}: metric {name}"
    if config["output_type"] not in ours.output_types:
        raise SpecError(f"{place}: " + one_of("output_type", str(config["output_type"]), list(ours.output_types)))
    if entry.get("aggregation", name) not in (name, "mean"):
        raise SpecError(f"{place}: " + one_of("aggregation", str(entry["aggregation"]), [name]))
    if ours.runs_code and not config.get("unsafe_code"):
        raise SpecError(
            f"{place} runs programs that a model wrote: say unsafe_code: true in the task file to allow that"
        )
    entry["aggregation"] = name
    settings_of(entry, where)


@cache
def register() -> None:
    """Make our metrics and filters known to lm-eval, once per process; a metric's aggregation has the same name."""
    import lm_eval.api.metrics  # noqa: F401  fills the registries
    from lm_eval.api.metrics import mean
    from lm_eval.api.registry import (
        aggregation_registry,
        filter_registry,
        higher_is_better_registry,
        metric_agg_registry,
        metric_registry,
    )

    from harness.metrics._clusters import cluster_filter

    for name, kind in load_all("metrics").items():
        own = kind()
        is_mean = not overrides(own, "total")  # lm-eval's own mean, so that a standard error is known
        metric_registry.register(name, target=own.item)
        aggregation_registry.register(name, target=mean if is_mean else own.total)
        metric_agg_registry.register(name, target=mean if is_mean else own.total)
        higher_is_better_registry.register(name, target=own.higher_is_better)
    filter_registry.register("cluster_vote", target=cluster_filter())
