"""The keys of a task file: those that the harness reads itself, and the configuration that it hands to lm-eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_line, one_of
from harness.metrics.base import checked, measure, measure_of, register
from harness.tasks.file import Keys
from harness.tasks.metadata import TaskMetadata
from harness.tasks.splits import Part

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
"""Generation settings that only count where answers are sampled."""
PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata", "tag", "task_alias")
"""Keys that say where rows lie or what a task is called, and nothing of prompts or scores."""
UNUSED = (
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "fewshot_config",
    "num_fewshot",
    "repeats",
)
"""Keys that the harness acts on in lm-eval's place."""


_KINDS: Mapping[str, Callable[[Any], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "a mapping": lambda value: isinstance(value, dict),
    "a list of mappings": lambda value: isinstance(value, list | tuple) and all(isinstance(v, dict) for v in value),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "true or false": lambda value: isinstance(value, bool),
}
_RULES = {
    **dict.fromkeys(("training_split", "validation_split", "test_split", "dataset_name"), "a text"),
    **dict.fromkeys(("output_type", "fewshot_delimiter"), "a text"),
    **dict.fromkeys(("dataset_kwargs", "generation_kwargs", "metadata"), "a mapping"),
    **dict.fromkeys(("metric_list", "filter_list"), "a list of mappings"),
    **dict.fromkeys(("num_fewshot", "repeats"), "a whole number"),
    "unsafe_code": "true or false",
}
"""What a value must be, where a wrong one would not be noticed here."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """The keys of a task file that the harness reads, with lm-eval's defaults.

    Types are what lm-eval documents; a file with a value of another kind is refused.

    Raises:
        TypeError: When a value is of another kind.
    """

    task: str | Sequence[object] | None = None
    """The task's name; a list in the file of a group of tasks."""
    output_type: str = "generate_until"
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    dataset_path: object = None
    dataset_name: str | None = None
    dataset_kwargs: Keys = field(default_factory=dict)
    custom_dataset: Callable[..., Mapping[str, Dataset]] | None = None
    """A function that makes the rows."""
    process_docs: Callable[[Dataset], Dataset] | None = None
    process_results: object = None
    doc_to_choice: object = None
    """The choices, or a template or function that gives a row's."""
    fewshot_delimiter: str = "\n\n"
    num_fewshot: int = 0
    generation_kwargs: Keys = field(default_factory=dict)
    repeats: int = 1
    """Answers to each item."""
    metric_list: Sequence[Keys] = ()
    filter_list: Sequence[Keys] = ()
    metadata: Keys = field(default_factory=dict)
    unsafe_code: bool = False

    def __post_init__(self) -> None:
        """Refuse what would be taken for something else, or fail far from here."""
        for name, rule in _RULES.items():
            value = getattr(self, name)
            if value is not None and not _KINDS[rule](value):
                raise TypeError(f"{name} must be {rule}, but is {one_line(repr(value), 80)}")

    @classmethod
    def of(cls, keys: Keys) -> Definition:
        """The keys that a file has; an empty value means the default."""
        return cls(**{known.name: keys[known.name] for known in fields(cls) if keys.get(known.name) is not None})

    @property
    def samples(self) -> bool:
        """Whether answers are sampled; if not, the likeliest token is taken each time."""
        settings = self.generation_kwargs
        return bool(settings.get("do_sample")) and bool(settings.get("temperature", 1.0))

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which generation ends; none where nothing is generated."""
        if self.output_type != "generate_until":
            return ()
        stops = self.generation_settings["until"]
        return (stops,) if isinstance(stops, str) else tuple(stops or ())

    @property
    def generation_settings(self) -> Keys:
        """Complete settings for `generate`; those of sampling are left out where answers are not sampled."""
        settings = dict(self.generation_kwargs)
        settings.setdefault("until", [self.fewshot_delimiter])
        if self.samples:
            return settings | {"do_sample": True, "temperature": float(settings.get("temperature", 1.0))}
        greedy = {key: value for key, value in settings.items() if key not in SAMPLING}
        return greedy | {"do_sample": False, "temperature": 0.0}

    def answers_per_item(self, where: str) -> int:
        """How often each item is answered; greedy answers are always the same, so there is one.

        Raises:
            SpecError: When `repeats` is no number of answers.
        """
        repeats = self.repeats
        # A bool is an int in Python, and `repeats: true` is a mistake.
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise SpecError(f"{where}: repeats must be a number of answers, but is {repeats!r}: give 1 or more")
        return repeats if self.samples else 1


def lm_eval_config(keys: Keys, name: str, metadata: TaskMetadata, where: str) -> Keys:
    """What lm-eval needs beside the rows: one metric, no examples before the prompt, samples where the file says so.

    Args:
        keys: The task file's, functions imported.
        name: The task's.
        metadata: Which may declare what lm-eval has no field for.
        where: The task, for error messages.

    Raises:
        SpecError: For an output type, metric or aggregation that there is not, or a metric without a direction.
    """
    definition = Definition.of(keys)
    metric = _metric(definition, keys, metadata, where)
    config = {key: value for key, value in keys.items() if key not in (*PLACES, *UNUSED, "process_docs")}
    config |= {"task": name, "output_type": definition.output_type, "metric_list": [metric]}
    if definition.output_type == "generate_until":
        repeats, ours = definition.answers_per_item(where), measure_of(metric)
        config |= {"generation_kwargs": _generation(definition, where), "repeats": repeats}
        if ours and ours.every_sample and not definition.filter_list:
            # lm-eval's default filter keeps the first answer only.
            config["filter_list"] = [{"name": "all", "filter": [{"function": "take_first_k", "k": repeats}]}]
    return config


def _generation(definition: Definition, where: str) -> Keys:
    """The settings for `generate`, which lm-eval must be able to read."""
    from lm_eval.models.utils import normalize_gen_kwargs

    try:
        settings = definition.generation_settings
        read = normalize_gen_kwargs(settings)
        if not all(isinstance(stop, str) for stop in read["until"]):
            raise TypeError(f"until must be a text or texts, but is {one_line(repr(settings['until']), 80)}")
        if read["max_gen_toks"] < 1:
            raise ValueError(f"max_gen_toks must be 1 or more, but is {read['max_gen_toks']}")
    except (TypeError, ValueError, OverflowError) as error:
        raise SpecError(
            f"{where}: generation_kwargs must be settings of generation, but are not ({error}): correct them"
        ) from error
    return settings


def _metric(definition: Definition, keys: Keys, metadata: TaskMetadata, where: str) -> Keys:
    """The first metric's entry, with nothing left to lm-eval's guesses."""
    from lm_eval.api.registry import (
        AGGREGATION_REGISTRY,
        DEFAULT_METRIC_REGISTRY,
        METRIC_REGISTRY,
        is_higher_better,
    )

    register()
    kind = definition.output_type
    if kind not in DEFAULT_METRIC_REGISTRY:
        raise SpecError(f"{where}: " + one_of("output_type", str(kind), list(DEFAULT_METRIC_REGISTRY)))
    entry = dict((definition.metric_list or [{"metric": DEFAULT_METRIC_REGISTRY[kind][0]}])[0])
    name = metric_name(entry)
    brings_code = callable(entry.get("metric")) or callable(definition.process_results)
    if entry.get("hf_evaluate") or not (brings_code or name in METRIC_REGISTRY):
        raise SpecError(f"{where}: " + one_of("metric", name, [str(known) for known in METRIC_REGISTRY]))
    # lm-eval would guess, and only log that it did; a wrong direction turns a ranking upside down.
    declared = metadata.metrics[name].higher_is_better if name in metadata.metrics else None
    known = is_higher_better(name) if declared is None else declared
    if not isinstance(entry.setdefault("higher_is_better", known), bool):
        raise SpecError(
            f"{where}: metric {name} must say which direction is better, but nobody does: add higher_is_better: true or false "
            "to its entry in metric_list"
        )
    if declared is not None and entry["higher_is_better"] is not declared:
        raise SpecError(
            f"{where}: higher_is_better of {name} must be the same in metric_list and metadata.metrics, but is "
            f"{str(entry['higher_is_better']).lower()} and {str(declared).lower()}: correct one"
        )
    if brings_code:
        entry.setdefault("aggregation", "mean")
    else:
        checked(entry, keys | {"output_type": kind}, where)
    aggregation = entry.get("aggregation")
    if isinstance(aggregation, str) and aggregation not in AGGREGATION_REGISTRY:
        raise SpecError(f"{where}: " + one_of("aggregation", aggregation, [str(k) for k in AGGREGATION_REGISTRY]))
    return entry


def metric_name(entry: Keys) -> str:
    """The name that an entry of `metric_list` gives, or that of its function."""
    named = entry.get("metric")
    return str(named.__name__ if callable(named) else named)


def reading_notes(definition: Definition, parts: Mapping[str, Part], metric: str) -> list[str]:
    """What a reader of a task's scores must know of splits, metrics, filters and examples.

    Args:
        definition: The task file's keys.
        parts: Which rows make up which split.
        metric: The metric that counts.
    """
    notes = [
        f"{name} is {part.high - part.low:.0%} of the data's split '{part.split}', chosen by hash"
        for name, part in parts.items()
        if name != "train" and (part.low, part.high) != (0.0, 1.0)
    ]
    if definition.training_split and not definition.test_split and definition.validation_split:
        notes.append(f"the data has no test split: its split '{parts['test'].split}' serves as one")
    if len(definition.metric_list) > 1:
        notes.append(f"of several metrics, the first counts: {metric}")
    if len(definition.filter_list) > 1:
        notes.append(f"of several filters, the first counts: {definition.filter_list[0].get('name')}")
    if definition.num_fewshot:
        notes.append(f"scored without the {definition.num_fewshot} examples that its prompt may hold elsewhere")
    return notes + (_sampling_notes(definition, metric) if definition.output_type == "generate_until" else [])


def _sampling_notes(definition: Definition, metric: str) -> list[str]:
    repeats, ours = definition.repeats, measure(metric)
    if not definition.samples:
        return ["generates once, though its file repeats: a greedy answer is always the same"] if repeats != 1 else []
    notes = [f"samples {repeats} answer{'s' * (repeats != 1)} per item, with the same random numbers for every model"]
    if repeats != 1 and not definition.filter_list and not (ours and ours.every_sample):
        notes.append(f"of {repeats} answers the first counts: name a filter, for example majority_vote")
    return notes
