"""Finding plug-ins: the file's stem is the plug-in's name, and adding a thing is adding a file.

A folder such as `harness/methods/` holds `base.py` with its abstract classes and one file per choice. A project may add
its own files in `plugins/methods/`. `load("methods", "lora")` imports that file alone and returns its one public
subclass of an abstract class of `base.py`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import logging
import sys
import traceback
from abc import ABC
from collections.abc import Iterator, Mapping, MutableSequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import SpecError, one_of

log = logging.getLogger(__name__)

AXIS_FOLDER = {"method": "methods", "objective": "objectives", "retention": "retention", "curation": "curation"}
AXES = tuple(AXIS_FOLDER.values())
FOLDERS = (
    *AXES,
    "metrics",
    "foreign/sources",
    "search/samplers",
    "search/schedulers",
    "recommend/surrogates",
    "report/sections",
    "runners",
)
"""Folders of plug-ins within the package. In a project's `plugins/`, each goes by the last part of its name."""


def use_project(root: Path) -> None:
    """Find the plug-ins of a project beside the package's own, in this process and in the workers that it starts.

    Call it once, as a process starts. It adds the project's folders to the search paths (`__path__`) of the plug-in
    packages. Python keeps these for the whole process, so no second registry is needed, and a project's file imports
    shared helpers such as `harness.methods._peft` as the package's own files do. Files are imported when they are
    first asked for. Passing a value instead would lead through every search space, stage and task file.

    Args:
        root: The project's folder; without a `plugins` folder in it, only the package's own are found.
    """
    for folder in FOLDERS:
        del _search_path(folder)[1:]
    for name in [name for name, module in sys.modules.items() if _was_project(name, module)]:
        del sys.modules[name]
    for cached in (names, load, code_hash, _files, _source, _imports):
        cached.cache_clear()
    importlib.invalidate_caches()
    plugins = root.resolve() / "plugins"
    if plugins.is_dir():
        for folder in FOLDERS:
            _search_path(folder).append(str(plugins / _kind(folder)))
        for sentence in _never_found(plugins):
            log.warning("%s", sentence)


def project_root() -> Path | None:
    """The folder that `use_project` was called with, if it has plug-ins."""
    added = _search_path(FOLDERS[0])[1:]
    return Path(added[0]).parents[1] if added else None


@cache
def names(folder: str) -> tuple[str, ...]:
    """The plug-ins of a folder (`methods`, `search/samplers`, ...), sorted, without importing any of them."""
    return tuple(sorted({path.stem for path in _files(folder) if path.stem != "base" and path.stem[0] != "_"}))


@cache
def load(folder: str, name: str) -> type[Any]:
    """The one public class that the plug-in's file derives from its folder's base.

    Args:
        folder: Folder of the package, for example `methods`.
        name: Stem of a file there, or in the project's folder of that kind.

    Raises:
        SpecError: When there is no such file; the message lists the valid names. When the file does not import,
            defines no class or several, leaves out what its base asks for, or has the name of a file of the package.
    """
    if name not in names(folder):
        raise SpecError(one_of(folder.replace("/", " ").rstrip("s"), name, list(names(folder))))
    path, *others = [path for path in _files(folder) if path.stem == name]
    if others:
        raise SpecError(
            f"{others[0]} must have a name of its own, but harness has a {path.name} in {folder}: rename it"
        )
    code_hash(folder, name)  # before the import: of the code that this process runs, whatever becomes of the file later
    bases = _bases(folder)
    module = _imported(_package(folder), path)
    classes = [
        value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and not key.startswith("_")
        and value.__module__ == module.__name__
        and issubclass(value, bases)
    ]
    if len(classes) != 1:
        derive = "derive a class from " + " or ".join(base.__name__ for base in bases)
        remedy = "prefix helpers with _" if classes else derive
        raise SpecError(f"{path} must define one public plug-in class, but defines {len(classes)}: {remedy}")
    if missing := _missing(classes[0]):
        base = next(base for base in classes[0].__mro__ if base in bases)
        raise SpecError(f"{path} must define {' and '.join(missing)}, but does not: see {base.__name__}")
    return classes[0]


@cache
def code_hash(folder: str, name: str) -> str:
    """A hash of what a plug-in's author can change: its file, and whatever it imports from folders of plug-ins.

    These are the private helpers that it shares with others, such as `methods/_peft.py`, and other plug-ins, followed
    to the end. The contract in `base.py` is not among them: all plug-ins share it, and it belongs to the version of
    harness. A file is read once, so that the hash is of the code that the process imported.

    Args:
        folder: Folder of the package, for example `methods`.
        name: Stem of a file there, or in the project's folder of that kind.

    Returns:
        12 hexadecimal digits; empty where there is no such file.
    """
    sources: dict[str, bytes] = {}
    waiting = [f"{_package(folder)}.{name}"]
    while waiting:
        module = waiting.pop()
        path = _plugin_file(module)
        if path is not None and module not in sources:
            sources[module] = _source(path)
            waiting += _imports(path, module)
    digest = hashlib.sha256()
    for module in sorted(sources):
        digest.update(f"{module} {len(sources[module])} ".encode() + sources[module])
    return digest.hexdigest()[:12] if sources else ""


def changed(recorded: Mapping[str, str] | None) -> list[str]:
    """The plug-ins, as `methods/lora`, whose code is not what it was when their hashes were recorded, if they were."""
    return [plugin for plugin, digest in (recorded or {}).items() if code_hash(*plugin.rsplit("/", 1)) != digest]


def load_all(folder: str) -> dict[str, type[Any]]:
    """The plug-ins of a folder by name; a broken one is left out with a warning, so that it spoils nothing else."""
    plugins = {}
    for name in names(folder):
        try:
            plugins[name] = load(folder, name)
        except SpecError as error:
            log.warning("left out: %s", error)
    return plugins


def overrides(plugin: object, hook: str) -> bool:
    """Whether a plug-in brings a method of its own in the place of its contract's default.

    Args:
        plugin: A plug-in's class, or an object of it.
        hook: Name of a method that the class in its folder's `base.py` has.
    """
    kind = plugin if isinstance(plugin, type) else type(plugin)
    default = [vars(base)[hook] for base in kind.__mro__ if hook in vars(base)][-1]
    return getattr(kind, hook) is not default


def _package(folder: str) -> str:
    return "harness." + folder.replace("/", ".")


def _kind(folder: str) -> str:
    return folder.rpartition("/")[2]


def _search_path(folder: str) -> MutableSequence[str]:
    """Where modules of a plug-in package are looked for: the package's own folder, then the project's."""
    return importlib.import_module(_package(folder)).__path__


@cache
def _files(folder: str) -> tuple[Path, ...]:
    return tuple(path for place in _search_path(folder) for path in sorted(Path(place).glob("*.py")))


def _plugin_file(module: str) -> Path | None:
    """The file of a plug-in or of a helper beside it; None for every other module."""
    package, _, stem = module.rpartition(".")
    folder = package.removeprefix("harness.").replace(".", "/")
    if folder not in FOLDERS or stem == "base":
        return None
    return next((path for path in _files(folder) if path.stem == stem), None)


@cache
def _source(path: Path) -> bytes:
    return path.read_bytes()


@cache
def _imports(path: Path, module: str) -> tuple[str, ...]:
    """Names of what a module's file imports anywhere; a file that is no Python imports nothing."""
    try:
        tree = ast.parse(_source(path))
    except (SyntaxError, ValueError):
        return ()
    imported: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), module.rpartition(".")[0])
            imported += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return tuple(imported)


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node; expressions, which are most of a tree and import nothing, are passed by."""
    for part in ("body", "orelse", "handlers", "finalbody", "cases"):
        for statement in getattr(tree, part, ()):
            yield statement
            yield from _statements(statement)


def _was_project(name: str, module: ModuleType) -> bool:
    """Whether a module was imported from a project's plug-ins rather than from the package."""
    file = getattr(module, "__file__", None) if name.startswith("harness.") else None
    return file is not None and not Path(file).is_relative_to(Path(__file__).parent)


def _never_found(plugins: Path) -> Iterator[str]:
    """A sentence for everything in a project's `plugins` folder that no name leads to."""
    kinds = {_kind(folder): folder for folder in FOLDERS}
    for path in sorted(plugins.iterdir()):
        if path.is_dir() and path.name[0] not in "._" and path.name not in kinds:
            yield one_of("folder of plug-ins", path.name, list(kinds)) + f" (in {plugins})"
        if path.suffix == ".py":
            yield f"{path} must stand in the folder of its kind, but stands beside them: move it, for example to methods"
    for kind, folder in kinds.items():
        own = {path.stem for path in (Path(__file__).parent / folder).glob("*.py")} - set(names(folder))
        for path in sorted((plugins / kind).glob("*.py")):
            if path.stem in own:
                yield f"{path} must have a name of its own, but harness has a {path.name} in {folder}: rename it"


def _bases(folder: str) -> tuple[type, ...]:
    """The abstract classes that a folder's `base.py` defines."""
    module = importlib.import_module(_package(folder) + ".base")
    classes = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, ABC)]
    return tuple(value for value in classes if value.__module__ == module.__name__)


def _imported(package: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(f"{package}.{path.stem}")
    except (Exception, SystemExit) as error:  # whatever a file does while it is imported, it spoils only itself
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise SpecError(
            f"{path} must be a Python file that can be imported, but raises {type(error).__name__}{where} "
            f"({' '.join(str(error).split())}): mend it, or move it away"
        ) from error


def _missing(plugin: type) -> list[str]:
    """What a plug-in's bases ask for and it does not define: abstract methods, and class variables without a default."""
    declared = [
        name
        for base in plugin.__mro__
        for name, kind in inspect.get_annotations(base).items()
        if str(kind).startswith("ClassVar") and not hasattr(plugin, name)
    ]
    return sorted({*declared, *getattr(plugin, "__abstractmethods__", ())})
