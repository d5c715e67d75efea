"""Finding plug-ins: the file's stem is the plug-in's name, and adding a thing is adding a file.

A folder such as `harness/methods/` holds `base.py` with one abstract class and one file per choice.
`load("methods", "lora")` imports that file alone and returns its one public subclass of the base.
"""

from __future__ import annotations

import importlib
from abc import ABC
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, one_of

if TYPE_CHECKING:
    pass

AXIS_FOLDER = {"method": "methods", "objective": "objectives", "retention": "retention", "curation": "curation"}
AXES = tuple(AXIS_FOLDER.values())


@cache
def names(folder: str) -> tuple[str, ...]:
    """The plug-ins of a folder (`methods`, `search/samplers`, ...), sorted, without importing any of them."""
    root = Path(__file__).parent / folder
    return tuple(
        sorted(path.stem for path in root.glob("*.py") if path.stem != "base" and not path.stem.startswith("_"))
    )


@cache
def load(folder: str, name: str) -> type[Any]:
    """The one public class that the file `harness/<folder>/<name>.py` derives from its folder's base.

    Raises:
        SpecError: When there is no such file; the message lists the valid names.
    """
    if name not in names(folder):
        raise SpecError(one_of(folder.replace("/", " ").rstrip("s"), name, list(names(folder))))
    package = "harness." + folder.replace("/", ".")
    bases = [
        value for value in vars(importlib.import_module(package + ".base")).values() if _is_plugin_base(value, package)
    ]
    module = importlib.import_module(f"{package}.{name}")
    found = [
        value
        for key, value in vars(module).items()
        if isinstance(value, type)
        and not key.startswith("_")
        and value.__module__ == module.__name__
        and issubclass(value, tuple(bases))
    ]
    if len(found) != 1:
        raise SpecError(
            f"{package}.{name} must define one public plug-in class, but defines {len(found)}: prefix helpers with _"
        )
    return found[0]


def _is_plugin_base(value: object, package: str) -> bool:
    return isinstance(value, type) and issubclass(value, ABC) and value.__module__ == package + ".base"
