"""Tasks: one YAML file is an lm-eval task with a training split; found by name, pinned by a fingerprint, built for lm-eval.

The same file scores the task and renders its training rows, so prompts cannot drift apart. What lm-eval has no field for
stands under `metadata` (see `metadata.TaskMetadata`).

Code: a user's `!function` tags and `unsafe_code` run only once the user has allowed the files' hashes
(`file.require_permission`). Tags of lm-eval's built-in tasks are installed package code and run as such, unless the
task declares `unsafe_code`. Templates of either kind are rendered in jinja's sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

from harness.errors import SpecError, describe, one_line, one_of
from harness.files import expand
from harness.metrics._code_eval import shut_in
from harness.records.codec import fingerprint
from harness.records.scale import Scale
from harness.records.trial import TaskRef
from harness.tasks.built_in import index
from harness.tasks.chats import answered_rows, check_chat, with_answers
from harness.tasks.code import repeatable, resolved
from harness.tasks.data import Generated, NoRows, Source, locate
from harness.tasks.definition import PLACES, Definition, lm_eval_config, metric_name, reading_notes
from harness.tasks.file import (
    Keys,
    TaskFile,
    canonical,
    read_task_file,
    require_permission,
    task_keys,
)
from harness.tasks.group import Leaf, TaskGroup, combination_notes, find, outline
from harness.tasks.labels import is_delimited, was_read_otherwise
from harness.tasks.metadata import PROSE, TaskMetadata, read_metadata
from harness.tasks.scale import check_declared, declared_scale
from harness.tasks.splits import Part, in_pieces, split_parts, without_scored
from harness.tasks.table import docs

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")
SHARED = ("chance", "domain", "preference", "score", "reward")
"""Metadata that a group has where all its tasks have the same."""
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
    scale: Scale
    """Between which values the metric lies, where that is declared."""
    metadata: TaskMetadata
    notes: tuple[str, ...]
    built_in: bool = False
    """Whether the file is lm-eval's own, whose scores stay lm-eval's."""
    source: Source = field(repr=False)
    parts: Mapping[str, Part] = field(repr=False)
    process: Callable[[Dataset], Dataset] | None = field(repr=False, default=None)
    """lm-eval's `process_docs`."""
    group: TaskGroup | None = field(repr=False, default=None)
    """What makes one score of several tasks; None for a task by itself."""
    members: tuple[Task, ...] = field(repr=False, default=())
    """Tasks and groups that a group lists."""

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

    @property
    def leaves(self) -> tuple[Task, ...]:
        """The tasks of a group, however deep, as often as it lists them; a task by itself is its only one."""
        return tuple(leaf for member in self.members for leaf in member.leaves) if self.group else (self,)

    def size(self, split: str) -> int:
        """Rows of a split; of a group, those of all its tasks.

        Raises:
            SpecError: When a task has no such split, or its data cannot be read.
        """
        return sum(len(leaf.split(split)) for leaf in dict.fromkeys(self.leaves))

    def left_out(self, name: str) -> int:
        """How many rows of a split hold a chat without an answer, and are no rows of the task."""
        return len(_all_rows(self, name)) - len(_rows(self, name))

    def place(self, name: str, index: int) -> str:
        """Where one of a split's rows stands, for messages; rows that are left out count, too."""
        where = f"task {self.name}"
        if self.metadata.chat:
            index = answered_rows(_all_rows(self, name), self.metadata, where)[index]
        return f"{where}: its {name} split, row {index + 1}"

    def split(self, name: str) -> Dataset:
        """The rows of `train`, `validation` or `test`, as lm-eval's templates see them; a group's tasks have their own.

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
    """The task of a name: a path to a YAML file, else NAME.yaml in the folders, else a task, group or tag of lm-eval.

    Args:
        name: A name or a path, which may hold `${VARIABLE}`.
        folders: Where NAME.yaml is looked for, see `task_folders`.

    Raises:
        SpecError: With one sentence: unknown name or key, tasks that no score can be made of, no metric, missing data, code
            not allowed.
    """
    try:
        return _built(_found(name, folders))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise SpecError(f"{name} must hold values of lm-eval's kinds, but does not ({error}): correct it") from error


_NAME = re.compile(r"[\w.+:@() -]{1,200}")
"""Of a task or group, ours or lm-eval's: no path, which would be another name for the same task."""


def _found(name: str, folders: Sequence[Path]) -> Leaf | TaskGroup:
    if name.endswith((".yaml", ".yml")):
        path = Path(expand(name, "task"))
        file = read_task_file(path)
        if "group" in file.config:
            return outline(file, path.stem, (path.parent, *folders))
        return Leaf(name=path.stem, file=file, built_in=False)
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"a task's name must be letters, digits and _ . - + : @ within 200 characters, but is {one_line(name, 80)!r}: give a "
            "name that 'harness list tasks' shows, or a path that ends in .yaml"
        )
    found = find(name, folders)
    if found is None:
        known = one_of("task", name, list(task_names(folders)))
        raise SpecError(f"{known}; lm-eval has no task or group of that name either")
    return found


def _built(found: Leaf | TaskGroup) -> Task:
    """The task or group with its data located, checked and pinned."""
    file, built_in = found.file, found.built_in
    if file and not built_in:
        _check_keys(file)
    # lm-eval's own `!function` tags are installed code. Programs that a model writes are run only where the user allows it.
    if file and (not built_in or Definition.of(file.config).unsafe_code):
        require_permission(file)
    if isinstance(found, TaskGroup):
        return _group(found, tuple(map(_built, found.members)))
    try:
        return _task(found.file, found.name, built_in)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise SpecError(
            f"{found.file.path} must hold values of lm-eval's kinds, but does not ({error}): correct it"
        ) from error


def _check_keys(file: TaskFile) -> None:
    """Refuse unknown keys, and a task or group that calls itself otherwise than its file."""
    definition, is_group = Definition.of(file.config), "group" in file.config
    for key in () if is_group else file.config:
        if key not in task_keys():
            raise SpecError(f"{file.path}: " + one_of("key", str(key), list(task_keys())))
    named = file.config["group"] if is_group else definition.task
    if is_group and named != file.path.stem:
        raise SpecError(f"{file.path}: group must equal the file's name, but is '{named}': rename one of them")
    if is_group:
        return
    if isinstance(named, str) and named != file.path.stem:
        raise SpecError(f"{file.path}: task must equal the file's name, but is '{named}': rename one of them")
    if not definition.metric_list:
        raise SpecError(f"{file.path}: metric_list must name a metric, but is empty: add for example [{{metric: acc}}]")


def _task(file: TaskFile, name: str, built_in: bool) -> Task:
    where = f"task {name}"
    if isinstance(Definition.of(file.config).task, list):
        raise SpecError(f"{where} lists tasks, so it must be a group, but names none: add group: {name}")
    for key in _UNSUPPORTED:
        if file.config.get(key):
            raise SpecError(f"{where}: {key} is not supported, but is set: choose a task with plain templates")
    if file.config.get("unsafe_code"):
        shut_in()
    keys = {key: resolved(value) for key, value in file.config.items()}
    definition = Definition.of(keys)
    named = (definition.training_split, definition.validation_split, definition.test_split)
    (train, validation, test), unlearned = without_scored(*named) if built_in else (named, [])
    parts = split_parts(train, validation, test, where)
    metadata, unread = _metadata(definition, built_in, where)
    check_declared(definition, metadata, where)
    if metadata.chat:
        check_chat(keys, definition.output_type, where)
    source = _source(definition, file.path.parent, where)
    config = lm_eval_config(keys, name, metadata, where)
    used = Definition.of(config)
    (metric,) = used.metric_list
    task = Task(
        name=name,
        ref=TaskRef(name, _fingerprint(file.config, source, built_in)),
        config=config,
        output_type=definition.output_type,
        metric=metric_name(metric),
        higher_is_better=metric["higher_is_better"],
        scale=declared_scale(used, metadata, where),
        metadata=metadata,
        notes=(*reading_notes(definition, parts, metric_name(metric)), *unlearned, *unread),
        built_in=built_in,
        source=source,
        parts=parts,
        process=definition.process_docs,
    )
    return replace(task, ref=replace(task.ref, fingerprint=_fingerprint_of_reading(task)))


@lru_cache(maxsize=64)
def _fingerprint_of_reading(task: Task) -> str:
    """The task's fingerprint; another one where its rows were once read otherwise, so that no old record stands for it."""
    known = task.ref.fingerprint
    otherwise = task.built_in and "train" in task.parts and is_delimited(task.config)  # trained only where it is scored
    with suppress(Exception):
        if not task.built_in:
            otherwise = was_read_otherwise(
                task.config, lambda: [d for part in task.parts for d in docs(task.split(part))]
            )
    return fingerprint([known, "texts as they stand"]) if otherwise else known


def _group(group: TaskGroup, members: tuple[Task, ...]) -> Task:
    """A group of built tasks: what all of them have in common, and the one score that is made of theirs."""
    leaves = tuple(leaf for member in members for leaf in member.leaves)
    scored = tuple(leaves[place] for place in group.counted) if group.used else members
    _check_alike(group.name, scored)
    common = _common(task.metric for task in scored)
    keys = group.file.config if group.file else {}
    own, _ = _metadata(Definition.of({"metadata": keys.get("metadata")}), group.built_in, f"group {group.name}")
    shared = {name: _common(getattr(leaf.metadata, name) for leaf in leaves) for name in SHARED}
    metadata = own.model_copy(
        update={name: value for name, value in shared.items() if value is not None and getattr(own, name) is None}
    )
    structure = [[member.name, member.ref.fingerprint] for member in members]
    score = None if group.used is None else [group.used.metric, group.used.weight_by_size, list(group.counted)]
    return Task(
        name=group.name,
        ref=TaskRef(group.name, fingerprint(["group", structure, score])),
        config={},
        output_type=_common(leaf.output_type for leaf in leaves) or "",
        metric=common or "mean",
        higher_is_better=scored[0].higher_is_better,
        scale=_mean_scale([task.scale for task in scored], is_plain=not (group.used and group.used.weight_by_size)),
        metadata=metadata,
        notes=combination_notes(group, common or "mean"),
        source=NoRows(group.name),
        parts={name: Part(name) for name in SPLITS if all(name in leaf.parts for leaf in leaves)},
        group=group,
        members=members,
    )


def _check_alike(name: str, scored: Sequence[Task]) -> None:
    """Refuse parts of which there is no mean: of accuracies and losses, or of shares and percentages."""
    first = scored[0]
    for other in scored[1:]:
        best = {task.scale.best(task.higher_is_better) for task in (first, other)}
        if first.higher_is_better != other.higher_is_better or len(best - {None}) > 1:
            raise SpecError(
                f"group {name} must have parts whose mean says something, but {first.metric} of {first.name} and "
                f"{other.metric} of {other.name} have another direction or best value: name its parts instead"
            )


def _mean_scale(scales: Sequence[Scale], is_plain: bool) -> Scale:
    """The scale of a mean; unknown where the scales differ and the weights are not known yet."""
    if len(set(scales)) == 1:
        return scales[0]
    lows, highs = ([getattr(scale, end) for scale in scales] for end in ("low", "high"))
    if not is_plain:
        return Scale()
    return Scale(low=None if None in lows else fmean(lows), high=None if None in highs else fmean(highs))


def _common(values: Iterable[T]) -> T | None:
    """What all values are; None where they differ."""
    first, *others = values
    return first if all(value == first for value in others) else None


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
    return fingerprint([canonical(scored), canonical(facts), source.identity(), _version() if built_in else None])


@lru_cache(maxsize=256)  # mmlu alone has 57 tasks
def _rows(task: Task, name: str) -> Dataset:
    rows = _all_rows(task, name)
    return with_answers(rows, task.metadata, f"task {task.name}") if task.metadata.chat else rows


@lru_cache(maxsize=64)
def _all_rows(task: Task, name: str) -> Dataset:
    if name not in task.parts:
        remedy = "name it in the task file"
        if task.built_in:
            remedy = f"write a task file of your own that names one and includes lm-eval's ({index().files.get(task.name, task.name)})"
        raise SpecError(
            f"task {task.name} must have a {name} split to be used for this, but has {', '.join(task.parts)}: {remedy}"
        )
    import datasets

    datasets.disable_progress_bars()
    rows = task.parts[name].take(task.source.load(task.parts[name].split))
    if pieces := task.metadata.pieces:
        rows = in_pieces(rows, pieces, task.name)
    # Last, so that a task's own function sees the pieces as if the data had them as rows.
    try:
        with repeatable():
            return task.process(rows) if task.process else rows
    except Exception as error:  # a function of anybody's
        raise SpecError(
            f"task {task.name}: process_docs must take its {name} rows, but fails ({describe(error)})"
        ) from error


def _version() -> str:
    from lm_eval import __version__

    return str(__version__)
