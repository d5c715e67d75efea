"""Recipes: named lists of stages, one YAML file each in `studies/recipes/`, that a family of a study may name.

A recipe is what a paper does in several stages. Its file holds `summary`, `paper` and `stages` as a study's family has
them; a family that says `recipe: NAME` has those stages. By a stage's number it may change parameters under `params`
(`{1.learning_rate: 1.0e-4}`) and give other training rows under `data` (`{0: my_documents}`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import SpecError, one_of
from harness.files import read_yaml


@dataclass(frozen=True)
class Recipe:
    """A list of stages with a name."""

    summary: str
    paper: str
    stages: tuple[Mapping[str, Any], ...]


def recipes(studies: Path) -> dict[str, Recipe]:
    """The recipes beside a folder's studies, by name.

    Raises:
        SpecError: For a file that is no recipe.
    """
    return {path.stem: _read(path) for path in sorted((studies / "recipes").glob("*.yaml"))}


def expanded(family: Mapping[str, Any], studies: Path) -> dict[str, Any]:
    """A family that names a recipe as one that lists its stages.

    Args:
        family: As the study file has it.
        studies: The study file's folder.

    Raises:
        SpecError: For an unknown recipe or key, or a parameter or data of no stage.
    """
    known = recipes(studies)
    name = str(family["recipe"])
    if name not in known:
        raise SpecError(one_of("recipe", name, list(known)))
    if unknown := sorted(map(str, set(family) - {"recipe", "params", "data"})):
        raise SpecError(f"recipe {name}: " + one_of("key", unknown[0], ["params", "data"]))
    for key in ("params", "data"):
        if not isinstance(family.get(key) or {}, Mapping):
            raise SpecError(f"recipe {name}: {key} must map stages to values, but is {family[key]!r}: correct it")
    stages = [dict(stage) | {"params": dict(stage.get("params", {}))} for stage in known[name].stages]
    for key, value in (family.get("params") or {}).items():
        number, _, parameter = str(key).partition(".")
        if not number.isdecimal() or int(number) >= len(stages) or not parameter:
            raise SpecError(
                f"recipe {name}: params must be named by stage, 0. to {len(stages) - 1}., but got {key!r}: "
                "write for example 0.learning_rate"
            )
        stages[int(number)]["params"][parameter] = value
    for key, task in (family.get("data") or {}).items():
        if not str(key).isdecimal() or int(key) >= len(stages):
            raise SpecError(
                f"recipe {name}: data must be named by stage, 0 to {len(stages) - 1}, but got {key!r}: write for example "
                "0: my_documents"
            )
        stages[int(key)]["data"] = str(task)
    return {"stages": stages}


def _read(path: Path) -> Recipe:
    data = read_yaml(path)
    keys = {"summary", "paper", "stages"}
    stages = data.get("stages")
    if set(data) != keys or not (isinstance(stages, list) and stages and all(map(_is_stage, stages))):
        raise SpecError(
            f"{path} must hold summary, paper and a list of stages, but holds {str(data)[:200]}: see studies/recipes/"
        )
    return Recipe(str(data["summary"]), str(data["paper"] or ""), tuple(stages))


def _is_stage(stage: object) -> bool:
    return isinstance(stage, dict) and isinstance(stage.get("params", {}), dict)
