"""A study as the driver passes it around: what it asks, what its names stand for, and where its trials run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from harness.models.facts import ModelFacts
from harness.records.paths import Paths, StudyPaths
from harness.records.scale import Scale
from harness.records.trial import ModelRef, TaskRef
from harness.runners._options import Settings
from harness.runners.base import backend, parse_options
from harness.study.family import Family
from harness.study.spec import StudySpec
from harness.tasks.facts import TaskFacts


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where and how trials run; what a study asks is not in it.

    Raises:
        UsageError: For an unknown runner or option, or a value that is not a number where one is needed.
    """

    paths: Paths = field(default_factory=Paths)
    task_folders: tuple[Path, ...] = ()
    runner: str = "local"
    """A file of `harness/runners/` or of the project's `plugins/runners/`."""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`workers` (trials at a time), `threads` (CPU threads of each), and the runner's own, for example `partition`."""
    device: str = "auto"
    display: bool = True
    refresh: bool = False
    """Run again what other versions of the harness or of its libraries have recorded."""
    work: str = "harness.trial.group:warm_up"
    """What workers call, as `module:function`."""

    def __post_init__(self) -> None:
        """Refuse wrong options before anything is resolved, written or started."""
        parse_options(self.runner, self.options)

    @cached_property
    def settings(self) -> Settings:
        """The runner's options with their types and defaults."""
        return parse_options(self.runner, self.options)

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`: what trials run on."""
        if self.device != "auto":
            return self.device.split(":")[0]
        return backend(self.runner).device(self.settings)

    @property
    def workers(self) -> int:
        """Packs of trials that run at a time."""
        return backend(self.runner).workers(self.settings)

    @cached_property
    def memory(self) -> int | None:
        """Bytes of the device that a trial has for itself; None where nobody says."""
        here = backend(self.runner)
        return here.memory(self.settings) if self.device_type == here.device(self.settings) else None

    @cached_property
    def gpu(self) -> str | None:
        """Name of the GPU that a trial holds, as prices are keyed by; None for a CPU.

        It is `default` where nobody knows the name before a trial runs.
        """
        if self.device_type == "cpu":
            return None
        return backend(self.runner).gpu_name() or "default"


@dataclass(frozen=True)
class ModelInfo:
    """A base model as far as the driver needs it."""

    ref: ModelRef
    facts: ModelFacts = field(default_factory=ModelFacts)
    context: int | None = None
    """Tokens of context that its config states; None where it states none."""


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """A task as far as the driver needs it."""

    ref: TaskRef
    higher_is_better: bool
    scale: Scale = field(default_factory=Scale)
    """Of its metric."""
    rows: int = 0
    """Training rows; 0 for a task that is only evaluated."""
    chars: float = 0.0
    """Mean characters of a training row."""
    tokens: Mapping[str, float] = field(default_factory=dict)
    """Mean tokens of a training row, by base model."""
    longest: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Tokens of its longest training row, and most tokens of one that carry loss, by base model."""
    items: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Items by split; of a group those of each of its tasks."""
    facts: TaskFacts = field(default_factory=TaskFacts)
    """What plug-ins may ask about it."""

    @property
    def tasks(self) -> int:
        """Tasks that are scored one after the other: 1, or those of a group."""
        return max(map(len, self.items.values()), default=1)

    def scored(self, split: str, limit: int | None) -> int:
        """Items that are scored.

        Args:
            split: `validation` or `test`.
            limit: Of each task; None for all.
        """
        return sum(min(present, limit or present) for present in self.items.get(split, ()))


class Arena(NamedTuple):
    """Where families compete: one task of one base model."""

    model: ModelInfo
    task: TaskInfo


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A study with everything that it names resolved, at the site where its trials run; see `resolve`."""

    spec: StudySpec
    site: Site
    models: tuple[ModelInfo, ...]
    tasks: tuple[TaskInfo, ...]
    off_target: tuple[TaskInfo, ...] = ()
    families: Mapping[str, Family]
    notes: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    """Base models that the study names and that cannot be used, each with the reason; the rest of it runs."""
    features: Mapping[Literal["tasks", "models"], Mapping[str, Mapping[str, float | str]]] = field(default_factory=dict)
    """What recommendations will want to know of tasks and models, by name."""

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.spec.name

    @property
    def paths(self) -> Paths:
        """Where records lie."""
        return self.site.paths

    @property
    def files(self) -> StudyPaths:
        """The study's own files."""
        return self.paths.study(self.name)

    @property
    def off_target_refs(self) -> tuple[TaskRef, ...]:
        """The off-target suite in the study's order."""
        return tuple(task.ref for task in self.off_target)

    @property
    def arenas(self) -> tuple[Arena, ...]:
        """Every base model with every task: in each of these places all families compete."""
        return tuple(Arena(model, task) for model in self.models for task in self.tasks)
