"""Which tasks a group or a tag means, nested as lm-eval nests them, and what its score is of; no data is asked for.

A group's own score is lm-eval's: the mean of one metric over all tasks in it, however deep, weighted by their items or not
(`lm_eval/api/group.py`). A tag, and a group that aggregates nothing, have no score in lm-eval: theirs is the plain mean of
their direct parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import SpecError, one_of
from harness.files import read_text
from harness.tasks.built_in import index
from harness.tasks.file import CodeReference, Keys, TaskFile, Yaml, read_task_file, task_keys

GROUP_KEYS = ("group", "group_alias", "task", "aggregate_metric_list", "metadata")
"""Of a group's file; all others stand in the place of its tasks' own."""


@dataclass(frozen=True)
class Aggregate:
    """What a group aggregates: an entry of its `aggregate_metric_list`."""

    metric: str
    filter: str | None = None
    """Name of the filter whose answers are meant; None for each task's first."""
    weight_by_size: bool = True
    """Whether a task counts as often as it has items."""

    def of(self, other: Aggregate) -> bool:
        """Whether a task that is scored for `other` is scored for this one."""
        return self.metric == other.metric and self.filter in (None, other.filter)


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A task, before its data are asked for."""

    name: str
    file: TaskFile
    """With what the groups around it put in place of its own keys."""
    built_in: bool

    def has(self, aggregate: Aggregate) -> bool:
        """Whether it can be scored by a metric, of a filter's answers."""
        filters = [_name(entry, "name") for entry in self.file.config.get("filter_list") or ()]
        return aggregate.metric in self._metrics and aggregate.filter in (None, *(filters or ["none"]))

    def scored_for(self, aggregate: Aggregate) -> Leaf:
        """The same with that metric, and that filter, first: the first is what counts."""
        keys: Keys = {}
        if (metrics := self.file.config.get("metric_list") or ()) and self._metrics[0] != aggregate.metric:
            keys["metric_list"] = sorted(metrics, key=lambda entry: _name(entry, "metric") != aggregate.metric)
        if aggregate.filter is not None and (filters := self.file.config.get("filter_list")):
            keys["filter_list"] = sorted(filters, key=lambda entry: _name(entry, "name") != aggregate.filter)
        return replace(self, file=replace(self.file, config=self.file.config | keys))

    @property
    def _metrics(self) -> list[str]:
        from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

        config = self.file.config
        named = [_name(entry, "metric") for entry in config.get("metric_list") or ()]
        return named or list(DEFAULT_METRIC_REGISTRY.get(config.get("output_type") or "generate_until", ()))


@dataclass(frozen=True, kw_only=True)
class TaskGroup:
    """A group or a tag, before any data are asked for."""

    name: str
    is_tag: bool
    file: TaskFile | None
    """None for a tag."""
    built_in: bool
    members: tuple[Leaf | TaskGroup, ...]
    aggregates: tuple[Aggregate, ...] = ()
    used: Aggregate | None = None
    """What its score is of; None for the plain mean of its members."""
    counted: tuple[int, ...] = ()
    """Positions among its leaves of those that have what is aggregated."""

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tasks in it, however deep, in lm-eval's order."""
        return tuple(_leaves(self))


def _leaves(group: TaskGroup) -> Iterator[Leaf]:
    for member in group.members:
        if isinstance(member, TaskGroup):
            yield from _leaves(member)
        else:
            yield member


def find(name: str, folders: Sequence[Path]) -> Leaf | TaskGroup | None:
    """What a name means: NAME.yaml in the folders, a tag of a file there, else a task, group or tag of lm-eval's; or None.

    Args:
        name: Of a task, group or tag; no path.
        folders: Where NAME.yaml is looked for.

    Raises:
        SpecError: For a file that is no task file, or a group whose members are not known or contain it.
    """
    found = _Finder(folders).find(name, {}, ())
    return scored(found) if isinstance(found, TaskGroup) else found


def outline(file: TaskFile, name: str, folders: Sequence[Path]) -> TaskGroup:
    """The group that a user's file defines.

    Args:
        file: Of the group.
        name: Of the group, which is the file's stem.
        folders: Where its members are looked for, before lm-eval's.

    Raises:
        SpecError: For unknown keys, or members that are not known or contain the group.
    """
    return scored(_Finder(folders).group(name, file.config, {}, _Place(file, False, (name,))))


@dataclass(frozen=True)
class _Place:
    """Where a group stands."""

    file: TaskFile
    built_in: bool
    around: tuple[str, ...]
    """Names of the groups around its members, itself included."""


@dataclass(frozen=True)
class _Finder:
    folders: Sequence[Path]
    _tags: dict[str, list[str]] = field(default_factory=dict)

    def find(self, name: str, overrides: Keys, around: tuple[str, ...]) -> Leaf | TaskGroup | None:
        """What a name means, with keys that groups around it put in place of its own."""
        if name in around:
            raise SpecError(
                f"group {name} must not contain itself, but does, by way of {around[-1]}: remove one member"
            )
        candidates = [folder / f"{name}.yaml" for folder in self.folders]
        own = next((path for path in candidates if path.is_file()), None)
        if own is None and (tagged := self._tagged(name) or index().tags.get(name)):
            members = [self._member(task, overrides, (*around, name)) for task in tagged]
            return TaskGroup(name=name, is_tag=True, file=None, built_in=True, members=tuple(members))
        path = index().files.get(name) if own is None else own
        if path is None:
            return None
        file = read_task_file(path)
        if "group" in file.config and "class" not in file.config:
            return self.group(name, file.config, overrides, _Place(file, own is None, (*around, name)))
        changed = {key: value for key, value in overrides.items() if key not in ("task", "group")}
        return Leaf(name=name, file=replace(file, config=file.config | changed), built_in=own is None)

    def group(self, name: str, config: Keys, overrides: Keys, place: _Place) -> TaskGroup:
        """A group from its keys.

        Args:
            name: Its name.
            config: Its keys.
            overrides: What groups around it put in place of its tasks' keys; they win.
            place: Where it stands.
        """
        if not place.built_in:
            _check_keys(config, place.file)
        passed = {key: value for key, value in config.items() if key not in GROUP_KEYS} | overrides
        listed = config.get("task") or []
        members: dict[str, Leaf | TaskGroup] = {}
        for item in [listed] if isinstance(listed, str) else listed:
            for member in self._listed(item, name, passed, place):
                members[member.name] = member
        if not members:
            raise SpecError(f"group {name} must have members, but task lists none: name tasks or groups")
        listed = _as_list(config.get("aggregate_metric_list"))
        aggregates = tuple(_aggregate(entry, place.built_in) for entry in listed)
        return TaskGroup(
            name=name,
            is_tag=False,
            file=place.file,
            built_in=place.built_in,
            members=tuple(members.values()),
            aggregates=aggregates,
        )

    def _listed(self, item: Yaml, group: str, passed: Keys, place: _Place) -> Sequence[Leaf | TaskGroup]:
        """The members that one entry of a group's `task` stands for; a tag stands for its tasks."""
        if isinstance(item, Mapping) and "group" in item:
            name = str(item["group"])
            if not self._known(name):
                inner = replace(place, around=(*place.around, f"{group}::{name}"))
                return [self.group(f"{group}::{name}", dict(item) | {"group": name}, passed, inner)]
            changes = passed | {key: value for key, value in item.items() if key not in GROUP_KEYS}
        elif isinstance(item, Mapping) and "task" in item:
            name, changes = str(item["task"]), passed | dict(item)
        elif isinstance(item, str):
            name, changes = item, passed
        else:
            raise SpecError(
                f"group {group}: a member must be a name, or have task or group, but is {item!r}: correct it"
            )
        if isinstance(item, Mapping) and {"dataset_path", "include"} & changes.keys() and not self._known(name):
            return [_inline(f"{group}::{name}", changes, place)]
        member = self._member(name, changes, place.around)
        return member.members if isinstance(member, TaskGroup) and member.is_tag else [member]

    def _member(self, name: str, overrides: Keys, around: tuple[str, ...]) -> Leaf | TaskGroup:
        member = self.find(name, overrides, around)
        if member is None:
            known = sorted({path.stem for folder in self.folders for path in folder.glob("[!_]*.yaml")})
            near = one_of("member", name, known) + "; lm-eval has none of that name either"
            raise SpecError(
                f"group {around[-1]}: "
                + (near if known else f"lm-eval must have its member {name}, but does not: name another")
            )
        return member

    def _known(self, name: str) -> bool:
        own = any((folder / f"{name}.yaml").is_file() for folder in self.folders)
        return own or bool(self._tagged(name)) or name in index().files or name in index().tags

    def _tagged(self, tag: str) -> list[str]:
        """Tasks of the folders that have a tag."""
        if not self._tags:
            for path in sorted(path for folder in self.folders for path in folder.glob("[!_]*.yaml")):
                # Most files have no tag, and reading one means parsing it.
                config = read_task_file(path).config if "tag" in read_text(path) else {}
                for own in _as_list(config.get("tag")):
                    self._tags.setdefault(str(own), []).append(path.stem)
            self._tags.setdefault("", [])
        return self._tags.get(tag, [])


def _inline(name: str, keys: Keys, place: _Place) -> Leaf:
    """A task that stands in a group's file; what it includes is read as for a file of its own."""
    config: Keys = {}
    code = place.file.code
    for include in _as_list(keys.get("include")):
        included = read_task_file(place.file.path.parent / str(include))
        config |= included.config
        code += included.code
    config = {key: value for key, value in (config | keys).items() if key not in ("task", "include")}
    return Leaf(name=name, file=replace(place.file, config=config, code=code), built_in=place.built_in)


def scored(group: TaskGroup) -> TaskGroup:
    """The group with what its score is of, and its tasks scored for that.

    Of several aggregated metrics, that counts which most tasks have; the first of them where several do. What a group
    further out wants of a task goes before what one further in wants, since a task is scored once.
    """
    wanted: dict[int, Aggregate] = {}
    chosen: dict[int, tuple[Aggregate | None, tuple[int, ...]]] = {}

    def choose(one: TaskGroup) -> None:
        leaves = one.leaves

        def counted(aggregate: Aggregate) -> list[int]:
            return [
                place
                for place, leaf in enumerate(leaves)
                if (aggregate.of(wanted[id(leaf)]) if id(leaf) in wanted else leaf.has(aggregate))
            ]

        used = max(one.aggregates, key=lambda aggregate: len(counted(aggregate)), default=None)
        places = tuple(counted(used)) if used else ()
        chosen[id(one)] = (used if places else None, places)
        if used:
            for place in places:
                wanted.setdefault(id(leaves[place]), used)
        for member in one.members:
            if isinstance(member, TaskGroup):
                choose(member)

    def rebuilt(one: TaskGroup) -> TaskGroup:
        members = tuple(
            rebuilt(member)
            if isinstance(member, TaskGroup)
            else member.scored_for(wanted[id(member)])
            if id(member) in wanted
            else member
            for member in one.members
        )
        used, counted = chosen[id(one)]
        return replace(one, members=members, used=used, counted=counted)

    choose(group)
    return rebuilt(group)


def combination_notes(group: TaskGroup, metric: str) -> tuple[str, ...]:
    """What a reader must know of the score of a group.

    Args:
        group: With what its score is of.
        metric: The score's name.
    """
    count, parts = len(group.leaves), len(group.members)
    if group.used is None:
        reason = "a tag" if group.is_tag else "a group that aggregates nothing all of it has"
        return (f"its {metric} is the plain mean of its {parts} parts: lm-eval has no score for {reason}",)
    weights = "each counts as often as it has items" if group.used.weight_by_size else "each counts the same"
    notes = [
        f"its {metric} is the mean over {len(group.counted)} of its {count} tasks, of which {weights}, as in lm-eval"
    ]
    if len(group.aggregates) > 1:
        notes.append(f"of several aggregated metrics, that counts which most tasks have: {metric}")
    left = [leaf.name for place, leaf in enumerate(group.leaves) if place not in group.counted]
    if left:
        shown = ", ".join(left[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
        notes.append(f"scored but without {metric}, so not part of its score: {shown}")
    return tuple(notes)


def _check_keys(config: Keys, file: TaskFile) -> None:
    for key in config:
        if key not in (*GROUP_KEYS, *task_keys()):
            raise SpecError(f"{file.path}: " + one_of("key", str(key), [*GROUP_KEYS, *task_keys()]))


def _aggregate(entry: Yaml, built_in: bool) -> Aggregate:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("metric"), str | CodeReference):
        raise SpecError(f"an entry of aggregate_metric_list must name a metric, but is {entry!r}: add it")
    metric, aggregation = _name(entry, "metric"), entry.get("aggregation", "mean")
    # lm-eval takes the mean whatever function a group's file names, which one who wrote the file must be told.
    if aggregation != "mean" and not (built_in and isinstance(aggregation, CodeReference)):
        raise SpecError(
            f"the aggregation of a group's {metric} must be mean, as in lm-eval, but is {aggregation!r}: correct it"
        )
    for key in entry:
        if key not in ("metric", "aggregation", "weight_by_size", "filter_list"):
            known = ["metric", "aggregation", "weight_by_size", "filter_list"]
            raise SpecError("aggregate_metric_list: " + one_of("key", str(key), known))
    filters = _as_list(entry.get("filter_list"))
    return Aggregate(metric, str(filters[0]) if filters else None, bool(entry.get("weight_by_size", True)))


def _as_list(value: Yaml) -> list[Yaml]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _name(entry: Yaml, key: str) -> str:
    """A name in an entry of `metric_list` or `filter_list`; that of a function is its last part."""
    named = entry.get(key) if isinstance(entry, Mapping) else entry
    return named.name.rpartition(".")[2] if isinstance(named, CodeReference) else str(named)
