"""What there is: plug-ins, tasks, models and studies, and records taken over from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import SpecError, StorageError, UsageError, one_of
from harness.files import read_yaml, write_atomically
from harness.models.parts import PARTS, Part
from harness.plugins import FOLDERS, load, names
from harness.records.paths import Paths
from harness.records.results import iterate_results
from harness.space import Choice, Distribution, Float, Integer, Text
from harness.study.recipes import recipes

WEIGHTS: Mapping[Part, str] = {
    "tables": "embeddings",
    "attention": "linear layers",
    "mlp": "linear layers",
    "experts": "experts of mixtures",
    "norms": "norms",
    "biases": "biases",
}
BEFORE = {"measures": "metrics"}
"""Names of kinds that `harness list` took before, and still takes."""


@dataclass(frozen=True)
class Entry:
    """One thing that a study file may name."""

    name: str
    summary: str
    paper: str = ""
    space: Mapping[str, str] = field(default_factory=dict)
    """Parameter to its range and default, in words."""
    merges: bool | None = None
    """Whether a method leaves a plain model; None for everything else."""
    requires: str = ""
    """What it needs beyond a base model and rows."""
    limits: str = ""
    """What a method was measured not to reach."""
    covers: str = ""
    """Which weights of a base a method can change."""


def inventory(root: Path, kind: str | None) -> dict[str, list[Entry]]:
    """Everything there is, by kind; of one kind only if `kind` is given.

    Raises:
        UsageError: For an unknown kind.
    """
    kind = BEFORE.get(kind, kind) if kind else kind
    kinds = {folder.split("/")[-1]: folder for folder in FOLDERS}
    known = [*kinds, "recipes", "left_out", "tasks", "models", "studies"]
    if kind is not None and kind not in known:
        raise UsageError(one_of("kind", kind, known))
    return {each: _entries(root, each, kinds.get(each)) for each in known if kind in (None, each)}


def _entries(root: Path, kind: str, folder: str | None) -> list[Entry]:
    if folder is not None:
        return [_plugin_entry(folder, name) for name in names(folder)]
    if kind == "left_out":
        return _left_out()
    if kind == "recipes":
        return [Entry(name, recipe.summary, recipe.paper) for name, recipe in recipes(root / "studies").items()]
    if kind == "tasks":
        return _task_entries(root)
    if kind == "models":
        from harness.models.base_model import embedded_models

        return [Entry(name, "embedded") for name in embedded_models()]
    return _study_entries(root)


def _plugin_entry(folder: str, name: str) -> Entry:
    try:
        plugin = load(folder, name)
    except SpecError as error:
        return Entry(name, f"unreadable: {error}")
    space = {name: _in_words(distribution) for name, distribution in getattr(plugin, "space", {}).items()}
    if folder == "runners":
        return Entry(name, plugin.summary, space={key: str(option) for key, option in plugin.all_options().items()})
    merges = plugin.mergeable if folder == "methods" else None
    needs = [getattr(plugin, "requires", "")]
    needs += ["preference rows"] if "rejected" in getattr(plugin, "needs", ()) else []
    needs += ["the base as a reference"] if getattr(plugin, "needs_reference", False) else []
    limits = plugin.limits if folder == "methods" else ""
    covers = _weights(plugin.covers) if folder == "methods" else ""
    return Entry(name, plugin.summary, plugin.paper, space, merges, ", ".join(filter(None, needs)), limits, covers)


def _weights(covers: Sequence[Part] | None) -> str:
    """The parts of a base that a method can change, in words; whether it reaches the experts of mixtures is said."""
    match covers:
        case None:
            return "which weights it changes is not known before it runs"
        case ():
            return "changes no weight of the base"
    named = [WEIGHTS[part] for part in covers if part in WEIGHTS]
    if set(covers) == set(PARTS):
        return "changes weights of every kind, experts of mixtures too"
    linear = "" if "experts" in covers or "attention" not in covers else ", no experts of mixtures"
    return f"changes {' and '.join(dict.fromkeys(named))}{linear}"


def _in_words(distribution: Distribution) -> str:
    """A range and its default, for example `whole number from 1 to 256, log scale; default 8`."""
    match distribution:
        case Float() | Integer():
            kind = "whole number" if isinstance(distribution, Integer) else "number"
            scale = ", log scale" if distribution.log else ""
            values = f"{kind} from {distribution.low:g} to {distribution.high:g}{scale}"
        case Choice():
            values = f"one of {', '.join(map(str, distribution.choices))}"
        case Text(names=""):
            values = "text"
        case Text():
            values = f"names of {distribution.names}, with weights if wanted: NAME or NAME=0.5,OTHER=0.25"
    return f"{values}; default {'none' if distribution.default == '' else distribution.default}"


def _left_out() -> list[Entry]:
    left_out = read_yaml(Path(__file__).with_name("left_out.yaml"))
    return [Entry(name, entry["reason"], entry["source"]) for name, entry in left_out.items()]


def _task_entries(root: Path) -> list[Entry]:
    from harness.tasks.task import task_folders

    paths = {path.stem: path for folder in reversed(task_folders(root)) for path in sorted(folder.glob("*.yaml"))}
    entries = []
    for name, path in sorted(paths.items()):
        try:
            metadata = read_yaml(path, {"!function": str}).get("metadata")
            about = metadata.get("description", "") if isinstance(metadata, dict) else ""
            entries.append(Entry(name, " ".join(str(about).split())))
        except SpecError as error:
            entries.append(Entry(name, f"unreadable: {error}"))
    return entries


def _study_entries(root: Path) -> list[Entry]:
    from harness.study.load import load_study

    entries = []
    for path in sorted((root / "studies").glob("*.yaml")):
        try:
            entries.append(Entry(path.stem, load_study(path).question))
        except SpecError as error:
            entries.append(Entry(path.stem, f"unreadable: {error}"))
    return entries


def inventory_text(kinds: Mapping[str, list[Entry]]) -> str:
    """The inventory as a page of text; spaces are shown when one kind was asked for."""
    lines = []
    for kind, entries in kinds.items():
        lines.append(kind)
        for entry in entries:
            lines.append(f"  {entry.name:<24} {entry.summary}" + (f" [{entry.paper}]" if entry.paper else ""))
            facts = [] if entry.merges is None else ["merges" if entry.merges else "does not merge"]
            facts += [f"needs {entry.requires}"] if entry.requires else []
            facts += [entry.covers] if entry.covers else []
            if len(kinds) == 1:
                lines += [f"      {', '.join(facts)}"] if facts else []
                lines += [f"      {entry.limits}"] if entry.limits else []
                lines += [f"      {name:<22} {text}" for name, text in entry.space.items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class Imported:
    """What an import took over."""

    taken: int
    there_already: int
    damaged: tuple[str, ...]

    def text(self) -> str:
        """A sentence, and one line per damaged record."""
        head = f"{self.taken} records taken over, {self.there_already} were here already, {len(self.damaged)} damaged"
        return "\n".join([head, *self.damaged])


def import_records(paths: Paths, source: Path) -> Imported:
    """Copy trials (records and item outcomes), imported runs and studies of another results folder; nothing here is overwritten.

    Raises:
        SpecError: When `source` holds no trials.
    """
    other = Paths(source)
    if not other.trials.is_dir():
        raise SpecError(f"{source} must be a results folder with trials/ in it, but has none: name its results/ folder")
    taken, there, damaged = 0, 0, []
    for path, result in iterate_results(other):
        if isinstance(result, StorageError):
            damaged.append(str(result))
        elif paths.record(path.parent.name).exists():
            there += 1
        else:
            _take(other, paths, path.parent.name, path)
            taken += 1
    for bundle in other.bundles():  # runs that were imported there
        if not paths.imported(bundle.stem).exists():
            write_atomically(paths.imported(bundle.stem), bundle.read_bytes())
    for study in other.started():
        target = paths.study(study.name).folder
        if not target.exists():
            for file in [file for suffix in ("json", "jsonl", "done") for file in study.folder.glob(f"*.{suffix}")]:
                write_atomically(target / file.name, file.read_bytes())
    return Imported(taken, there, tuple(damaged))


def _take(other: Paths, paths: Paths, key: str, record: Path) -> None:
    items = other.items(key)
    paths.trial(key).mkdir(parents=True, exist_ok=True)
    if items.exists():
        shutil.copyfile(items, paths.items(key))
    write_atomically(paths.record(key), record.read_bytes())
