"""Tasks: one YAML file is an lm-eval task with a training split; found by name, pinned by a fingerprint, built for lm-eval.

The same file scores the task and renders its training rows, so prompts cannot drift apart. What lm-eval has no field for
stands under `metadata` (see `metadata.TaskMetadata`).

Code: a user's `!function` tags and `unsafe_code` run only once the user has allowed the files' hashes
(`taskfile.require_permission`). Tags of lm-eval's built-in tasks are installed package code and run as such, unless the
task declares `unsafe_code`. Templates of either kind are rendered in jinja's sandbox.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_of
from harness.files import expand
from harness.metrics.base import checked, measure, register
from harness.records.trial import TaskRef, fingerprint
from harness.tasks.file import CodeReference, TaskFile, file_sha256, read_task_file, require_permission
from harness.tasks.generation import generation_settings, repeats_of, sampling_notes
from harness.tasks.metadata import PROSE, Pieces, TaskMetadata, read_metadata
from harness.tasks.splits import Generated, Part, Source, cut, locate, split_parts

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata", "tag", "task_alias")
_UNUSED = (
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "fewshot_config",
    "num_fewshot",
    "repeats",
)
_UNSUPPORTED = ("use_prompt", "doc_to_image", "doc_to_audio", "class")


@dataclass(frozen=True, eq=False)
class Task:
    """A task, pinned. Equal tasks have equal references."""

    name: str
    ref: TaskRef
    config: Mapping[str, Any]
    """lm-eval's configuration without data locations, splits and few-shot settings; one metric, filled in."""
    output_type: str
    metric: str
    higher_is_better: bool
    metadata: TaskMetadata
    notes: tuple[str, ...]
    source: Source = field(repr=False)
    parts: Mapping[str, Part] = field(repr=False)
    process: Callable[[Dataset], Dataset] | None = field(repr=False, default=None)
    """lm-eval's `process_docs`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.ref == other.ref

    def __hash__(self) -> int:
        return hash(self.ref)

    @property
    def chance(self) -> float | None:
        """The score of guessing, where the file says it."""
        return self.metadata.chance

    def split(self, name: str) -> Dataset:
        """The rows of `train`, `validation` or `test`, as lm-eval's templates see them.

        Raises:
            SpecError: When the task has no such split, or its data cannot be read.
        """
        return _rows(self, name)


def task_folders(root: Path) -> tuple[Path, ...]:
    """Where tasks are looked for: the user's, then the embedded ones."""
    return (root / "studies" / "tasks", Path(__file__).parents[1] / "testbed" / "tasks")


def task_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names of the tasks in these folders, sorted; files that begin with an underscore are there to be included."""
    return tuple(sorted({path.stem for folder in folders for path in folder.glob("[!_]*.yaml")}))


def find_task(name: str, folders: Sequence[Path]) -> Task:
    """The task of a name: a path to a YAML file, else NAME.yaml in the folders, else a built-in task of lm-eval.

    Raises:
        SpecError: With one sentence: unknown name or key, group of tasks, no metric, missing data, code not allowed.
    """
    is_path = name.endswith((".yaml", ".yml"))
    candidates = [Path(expand(name, "task"))] if is_path else [folder / f"{name}.yaml" for folder in folders]
    path = next((candidate for candidate in candidates if is_path or candidate.is_file()), None)
    built_in = path is None
    path = path or _built_in(name)
    if path is None:
        known = one_of("task", name, list(task_names(folders)))
        raise SpecError(f"{known}; lm-eval has no task of that name either")
    file = read_task_file(path)
    if not built_in:
        _check_keys(file)
    if not built_in or file.config.get("unsafe_code"):
        require_permission(file)
    try:
        return _task(file, name if built_in else path.stem, built_in)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise SpecError(f"{path} must hold values of lm-eval's kinds, but does not ({error}): correct it") from error


def _check_keys(file: TaskFile) -> None:
    """Refuse unknown keys, and a task that calls itself otherwise than its file."""
    if "group" not in file.config:
        for key in file.config:
            if key not in task_keys():
                raise SpecError(f"{file.path}: " + one_of("key", str(key), list(task_keys())))
    named = file.config.get("task", file.path.stem)
    if isinstance(named, str) and named != file.path.stem:
        raise SpecError(f"{file.path}: task must equal the file's name, but is '{named}': rename one of them")
    if not file.config.get("metric_list"):
        raise SpecError(f"{file.path}: metric_list must name a metric, but is empty: add for example [{{metric: acc}}]")


def task_keys() -> tuple[str, ...]:
    """Every key that a task file may have."""
    from lm_eval.config.task import TaskConfig

    return (*(f.name for f in fields(TaskConfig)), "include")


def _task(file: TaskFile, name: str, built_in: bool) -> Task:
    where, raw = f"task {name}", file.config
    if "group" in raw or isinstance(raw.get("task"), list):
        raise SpecError(f"{where} must be one task, but is a group: name one of its subtasks")
    for key in _UNSUPPORTED:
        if raw.get(key):
            raise SpecError(f"{where}: {key} is not supported, but is set: choose a task with plain templates")
    parts = split_parts(raw.get("training_split"), raw.get("validation_split"), raw.get("test_split"), where)
    resolved = {key: _resolve(value) for key, value in raw.items()}
    metadata, notes = _metadata(resolved, built_in, where)
    source = _source(resolved, file.path.parent, where)
    config = _config(resolved, name, where)
    metric = config["metric_list"][0]
    return Task(
        name=name,
        ref=TaskRef(name, _fingerprint(raw, source, built_in)),
        config=config,
        output_type=config["output_type"],
        metric=_metric_name(metric),
        higher_is_better=metric["higher_is_better"],
        metadata=metadata,
        notes=(*_notes(raw, parts, _metric_name(metric)), *notes),
        source=source,
        parts=parts,
        process=resolved.get("process_docs"),
    )


def _metadata(resolved: Mapping[str, Any], built_in: bool, where: str) -> tuple[TaskMetadata, tuple[str, ...]]:
    """A task's metadata, and a note where some of it is left unread."""
    given = dict(resolved.get("metadata") or {})
    unknown = sorted(str(key) for key in given if key not in TaskMetadata.model_fields)
    if not built_in and not resolved.get("custom_dataset"):
        return read_metadata(given, where), ()
    # lm-eval's own files carry keys for its tables, and passes the keys on to a function that makes the data.
    known = {key: value for key, value in given.items() if key in TaskMetadata.model_fields}
    return read_metadata(known, where), (
        f"metadata that the harness does not read: {', '.join(unknown)}",
    ) if unknown else ()


def _source(resolved: Mapping[str, Any], folder: Path, where: str) -> Source:
    if make := resolved.get("custom_dataset"):
        options = {**(resolved.get("metadata") or {}), **(resolved.get("dataset_kwargs") or {})}
        return Generated(make, options, _version())
    return locate(resolved, folder, where)


def _config(resolved: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """What lm-eval needs beside the rows: one metric, no examples before the prompt, samples where the file says so."""
    config = {key: value for key, value in resolved.items() if key not in (*_PLACES, *_UNUSED, "process_docs")}
    config |= {"task": name, "output_type": resolved.get("output_type", "generate_until")}
    config["metric_list"] = [_metric(config, where)]
    if config["output_type"] == "generate_until":
        config["generation_kwargs"], config["repeats"] = generation_settings(config), repeats_of(resolved, where)
    ours = measure(_metric_name(config["metric_list"][0]))
    if ours and ours.every_sample and not config.get("filter_list"):
        config["filter_list"] = [{"name": "all", "filter": [{"function": "take_first_k", "k": config["repeats"]}]}]
    return config


def _fingerprint(raw: Mapping[str, Any], source: Source, built_in: bool) -> str:
    """Hash of what can change a row, a prompt or a score; a built-in task's code comes with lm-eval's version."""
    keys = {key: value for key, value in raw.items() if key not in (*_PLACES, "task", "include")}
    facts = {key: value for key, value in (raw.get("metadata") or {}).items() if key not in PROSE}
    return fingerprint([_canonical(keys), _canonical(facts), source.identity(), _version() if built_in else None])


def _metric(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The first metric's entry, with nothing left to lm-eval's guesses."""
    from lm_eval.api.registry import (
        AGGREGATION_REGISTRY,
        DEFAULT_METRIC_REGISTRY,
        METRIC_REGISTRY,
        is_higher_better,
    )

    register()
    kind = config["output_type"]
    if kind not in DEFAULT_METRIC_REGISTRY:
        raise SpecError(f"{where}: " + one_of("output_type", str(kind), list(DEFAULT_METRIC_REGISTRY)))
    entry = dict((config.get("metric_list") or [{"metric": DEFAULT_METRIC_REGISTRY[kind][0]}])[0])
    name = _metric_name(entry)
    own = callable(entry.get("metric")) or callable(config.get("process_results"))
    if entry.get("hf_evaluate") or not (own or name in METRIC_REGISTRY):
        raise SpecError(f"{where}: " + one_of("metric", name, [str(known) for known in METRIC_REGISTRY]))
    if not isinstance(entry.setdefault("higher_is_better", is_higher_better(name)), bool):
        raise SpecError(f"{where}: metric {name} must say higher_is_better: true or false, but does not: add it")
    if own:
        entry.setdefault("aggregation", "mean")
    else:
        checked(entry, config, where)
    aggregation = entry.get("aggregation")
    if isinstance(aggregation, str) and aggregation not in AGGREGATION_REGISTRY:
        raise SpecError(f"{where}: " + one_of("aggregation", aggregation, [str(k) for k in AGGREGATION_REGISTRY]))
    return entry


def _metric_name(entry: Mapping[str, Any]) -> str:
    named = entry.get("metric")
    return str(named.__name__ if callable(named) else named)


def _notes(raw: Mapping[str, Any], parts: Mapping[str, Part], metric: str) -> tuple[str, ...]:
    notes = [
        f"{name} is {part.high - part.low:.0%} of the data's split '{part.split}', chosen by hash"
        for name, part in parts.items()
        if name != "train" and (part.low, part.high) != (0.0, 1.0)
    ]
    if raw.get("training_split") and not raw.get("test_split") and raw.get("validation_split"):
        notes.append(f"the data has no test split: its split '{parts['test'].split}' serves as one")
    if len(raw.get("metric_list") or []) > 1:
        notes.append(f"of several metrics, the first counts: {metric}")
    if len(raw.get("filter_list") or []) > 1:
        notes.append(f"of several filters, the first counts: {raw['filter_list'][0].get('name')}")
    if raw.get("num_fewshot"):
        notes.append(f"scored without the {raw['num_fewshot']} examples that its prompt may hold elsewhere")
    notes += sampling_notes(raw, metric) if raw.get("output_type", "generate_until") == "generate_until" else []
    return tuple(notes)


@lru_cache(maxsize=64)
def _rows(task: Task, name: str) -> Dataset:
    if name not in task.parts:
        raise SpecError(
            f"task {task.name} must have a {name} split to be used for this, but has {', '.join(task.parts)}: "
            "name it in the task file"
        )
    import datasets

    datasets.disable_progress_bars()
    rows = task.parts[name].take(task.source.load(task.parts[name].split))
    if pieces := task.metadata.pieces:
        rows = _in_pieces(rows, pieces, task.name)
    return task.process(rows) if task.process else rows


def _in_pieces(rows: Dataset, pieces: Pieces, name: str) -> Dataset:
    from datasets import Dataset

    column, longest = pieces.column, pieces.max_chars
    if column not in rows.column_names:
        raise SpecError(
            f"task {name}: metadata.pieces must be {{column, max_chars}} with one of the columns "
            f"{', '.join(rows.column_names)}, but is {pieces.model_dump()!r}: correct it"
        )
    return Dataset.from_list([row | {column: piece} for row in rows for piece in cut(str(row[column] or ""), longest)])


def _resolve(value: Any) -> Any:
    """Import what `!function` tags name; permission was asked for before."""
    if isinstance(value, CodeReference):
        from lm_eval.tasks._yaml_loader import _import_func_in_yml

        try:
            return _import_func_in_yml(value.name, value.folder)
        except (ImportError, AttributeError, ValueError) as error:
            raise SpecError(f"!function {value.name} must name an importable function ({error}): correct it") from error
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    return [_resolve(item) for item in value] if isinstance(value, list) else value


def _canonical(value: Any) -> Any:
    """JSON of a YAML value; code stands as its name and content."""
    if isinstance(value, CodeReference):
        return {"function": value.name, "sha256": file_sha256(value.module) if value.module else None}
    if isinstance(value, dict):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _version() -> str:
    from lm_eval import __version__

    return str(__version__)


@cache
def _built_in(name: str) -> Path | None:
    """The file of lm-eval's built-in task; the same as its `TaskManager` finds, in a tenth of the time.

    Raises:
        SpecError: When the name means a group of tasks.
    """
    spec = importlib.util.find_spec("lm_eval")
    root = Path(str(spec.origin)).parent / "tasks" if spec else Path()
    quoted = rb"['\"]?" + re.escape(name.encode()) + rb"['\"]?[ \t]*(?:#.*)?\r?$"
    task = re.compile(rb"^['\"]?task['\"]?:[ \t]*" + quoted, re.MULTILINE)
    group = re.compile(rb"^['\"]?(?:group|tag)['\"]?:(?:[ \t]*|(?:\s+-.*)*\s+-[ \t]*)" + quoted, re.MULTILINE)
    is_group = False
    for path in sorted(root.rglob("*.yaml")):
        content = path.read_bytes()
        if task.search(content):
            return path
        is_group = is_group or group.search(content) is not None
    if is_group:
        raise SpecError(f"task {name} must be one task, but is a group of lm-eval: name one of its subtasks")
    return None


_KINDS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "dict": "object", "list": "array"}


def task_json_schema() -> dict[str, Any]:
    """JSON Schema of a task file, for editors: lm-eval's fields, `include`, and our `metadata`."""
    from lm_eval.config.task import TaskConfig

    properties: dict[str, Any] = {"include": {"type": ["string", "array"], "description": "YAML to start from."}}
    for known in fields(TaskConfig):
        kinds = [part.strip().split("[")[0] for part in str(known.type).split("|")]
        plain = sorted({_KINDS[kind] for kind in kinds if kind in _KINDS})
        properties[known.name] = {"type": plain if len(plain) > 1 else plain[0]} if plain else {}
    properties["output_type"] = {
        "enum": ["multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling"]
    }
    metadata = TaskMetadata.model_json_schema()
    # References inside it start at the root of the whole document.
    definitions = metadata.pop("$defs")
    properties["metadata"] = metadata
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "harness task",
        "type": "object",
        "properties": properties,
        "anyOf": [{"required": ["include"]}, {"required": ["dataset_path", "metric_list", "doc_to_target"]}],
        "additionalProperties": False,
        "$defs": definitions,
    }
