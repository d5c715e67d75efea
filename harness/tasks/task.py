"""Tasks: one YAML file is an lm-eval task with a training split; found by name, pinned by a fingerprint, built for lm-eval.

The same file scores the task and renders its training rows, so prompts cannot drift apart. What lm-eval has no field for
stands under `metadata` (see `metadata.TaskMetadata`).

Code: a user's `!function` tags and `unsafe_code` run only once the user has allowed the files' hashes
(`file.require_permission`). Tags of lm-eval's built-in tasks are installed package code and run as such, unless the
task declares `unsafe_code`. Templates of either kind are rendered in jinja's sandbox.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SpecError, describe, one_of
from harness.files import expand
from harness.records.codec import fingerprint
from harness.records.trial import TaskRef
from harness.tasks.data import Generated, Source, locate
from harness.tasks.definition import PLACES, Definition, lm_eval_config, metric_name, reading_notes
from harness.tasks.file import (
    CodeReference,
    Keys,
    TaskFile,
    Yaml,
    file_sha256,
    read_task_file,
    require_permission,
    task_keys,
)
from harness.tasks.metadata import PROSE, Pieces, TaskMetadata, read_metadata
from harness.tasks.splits import Part, cut, split_parts
from harness.tasks.table import docs, table

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
_UNSUPPORTED = ("use_prompt", "doc_to_image", "doc_to_audio", "class")


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A task, pinned. Equal tasks have equal references."""

    name: str
    ref: TaskRef
    config: Keys
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

    # By reference: the configuration may hold functions, which do not compare, and a hash is wanted for caches.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.ref == other.ref

    def __hash__(self) -> int:
        return hash(self.ref)

    @property
    def chance(self) -> float | None:
        """The score of guessing, where the file says it."""
        return self.metadata.chance

    @property
    def definition(self) -> Definition:
        """The part of `config` that the harness reads itself."""
        return Definition.of(self.config)

    def split(self, name: str) -> Dataset:
        """The rows of `train`, `validation` or `test`, as lm-eval's templates see them.

        Raises:
            SpecError: When the task has no such split, or its data cannot be read.
        """
        return _rows(self, name)


def task_folders(root: Path) -> tuple[Path, ...]:
    """The folders in which tasks are looked for: the project's own, then that of the embedded tasks."""
    return (root / "studies" / "tasks", Path(__file__).parents[1] / "testbed" / "tasks")


def task_names(folders: Sequence[Path]) -> tuple[str, ...]:
    """Names of the tasks in these folders, sorted; a file whose name begins with an underscore is only included by others."""
    return tuple(sorted({path.stem for folder in folders for path in folder.glob("[!_]*.yaml")}))


def find_task(name: str, folders: Sequence[Path]) -> Task:
    """The task of a name: a path to a YAML file, else NAME.yaml in the folders, else a built-in task of lm-eval.

    Args:
        name: A name or a path, which may hold `${VARIABLE}`.
        folders: Where NAME.yaml is looked for, see `task_folders`.

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
    # lm-eval's own `!function` tags are installed code. Programs that a model writes are run only where the user allows it.
    if not built_in or Definition.of(file.config).unsafe_code:
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
    definition = Definition.of(file.config)
    named = definition.task
    if isinstance(named, str) and named != file.path.stem:
        raise SpecError(f"{file.path}: task must equal the file's name, but is '{named}': rename one of them")
    if not definition.metric_list:
        raise SpecError(f"{file.path}: metric_list must name a metric, but is empty: add for example [{{metric: acc}}]")


def _task(file: TaskFile, name: str, built_in: bool) -> Task:
    where = f"task {name}"
    if "group" in file.config or isinstance(Definition.of(file.config).task, list):
        raise SpecError(f"{where} must be one task, but is a group: name one of its subtasks")
    for key in _UNSUPPORTED:
        if file.config.get(key):
            raise SpecError(f"{where}: {key} is not supported, but is set: choose a task with plain templates")
    keys = {key: _resolve(value) for key, value in file.config.items()}
    definition = Definition.of(keys)
    parts = split_parts(definition.training_split, definition.validation_split, definition.test_split, where)
    metadata, unread = _metadata(definition, built_in, where)
    source = _source(definition, file.path.parent, where)
    config = lm_eval_config(keys, name, where)
    (metric,) = Definition.of(config).metric_list
    return Task(
        name=name,
        ref=TaskRef(name, _fingerprint(file.config, source, built_in)),
        config=config,
        output_type=definition.output_type,
        metric=metric_name(metric),
        higher_is_better=metric["higher_is_better"],
        metadata=metadata,
        notes=(*reading_notes(definition, parts, metric_name(metric)), *unread),
        source=source,
        parts=parts,
        process=definition.process_docs,
    )


def _metadata(definition: Definition, built_in: bool, where: str) -> tuple[TaskMetadata, list[str]]:
    """A task's metadata, and a note where some of it is left unread."""
    given = dict(definition.metadata)
    if not built_in and not definition.custom_dataset:
        return read_metadata(given, where), []
    # lm-eval's own files have keys for its tables, and a `custom_dataset` gets all of them as arguments.
    known = {key: value for key, value in given.items() if key in TaskMetadata.model_fields}
    unread = ", ".join(sorted(str(key) for key in given if key not in known))
    return read_metadata(known, where), [f"metadata that the harness does not read: {unread}"] if unread else []


def _source(definition: Definition, folder: Path, where: str) -> Source:
    if make := definition.custom_dataset:
        return Generated(make, definition.metadata | definition.dataset_kwargs, _version())
    return locate(definition, folder, where)


def _fingerprint(keys: Keys, source: Source, built_in: bool) -> str:
    """Hash of what can change a row, a prompt or a score."""
    scored = {key: value for key, value in keys.items() if key not in (*PLACES, "task", "include")}
    facts = {key: value for key, value in Definition.of(keys).metadata.items() if key not in PROSE}
    # The code of a built-in task is told by lm-eval's version, since its files are not hashed.
    return fingerprint([_canonical(scored), _canonical(facts), source.identity(), _version() if built_in else None])


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
    # Last, so that a task's own function sees the pieces as if the data had them as rows.
    try:
        return task.process(rows) if task.process else rows
    except Exception as error:  # a function of anybody's
        raise SpecError(
            f"task {task.name}: process_docs must take its {name} rows, but fails ({describe(error)})"
        ) from error


def _in_pieces(rows: Dataset, pieces: Pieces, name: str) -> Dataset:
    column, longest = pieces.column, pieces.max_chars
    if column not in rows.column_names:
        raise SpecError(
            f"task {name}: metadata.pieces must be {{column, max_chars}} with one of the columns "
            f"{', '.join(rows.column_names)}, but is {pieces.model_dump()!r}: correct it"
        )
    cut_up = [row | {column: piece} for row in docs(rows) for piece in cut(str(row[column] or ""), longest)]
    return table([(Path(name), cut_up)])


def _resolve(value: Yaml) -> Yaml:
    """The value with the functions that `!function` tags name; `require_permission` comes first."""
    if isinstance(value, CodeReference):
        from lm_eval.tasks._yaml_loader import _import_func_in_yml

        try:
            return _import_func_in_yml(value.name, value.folder)
        except (ImportError, AttributeError, ValueError) as error:
            raise SpecError(f"!function {value.name} must name an importable function ({error}): correct it") from error
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    return [_resolve(item) for item in value] if isinstance(value, list) else value


def _canonical(value: Yaml) -> Yaml:
    """A YAML value as JSON; a function is told by its name and the hash of its file."""
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
    # The name is searched in the bytes of 14,000 files; parsing their YAML, as lm-eval does, takes ten times as long.
    # Sorted, or the file system's order would decide between two files with one name.
    for path in sorted(root.rglob("*.yaml")):
        content = path.read_bytes()
        if task.search(content):
            return path
        is_group = is_group or group.search(content) is not None
    if is_group:
        raise SpecError(f"task {name} must be one task, but is a group of lm-eval: name one of its subtasks")
    return None
