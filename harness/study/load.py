"""Reads a study file and checks everything in it that needs no model and no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import SpecError, one_of
from harness.files import read_yaml
from harness.plugins import names
from harness.study.family import resolved_families
from harness.study.recipes import expanded
from harness.study.spec import StudySpec, sentences


def load_study(path: Path) -> StudySpec:
    """Read and check a study file.

    Raises:
        SpecError: With one sentence per broken rule.
    """
    data = read_yaml(path)
    # The name of a study is that of its outputs: two files of one name would mix theirs.
    if data.setdefault("name", path.stem) != path.stem:
        raise SpecError(
            f"{path}: name must be the file's, {path.stem}, or be left out, but is {data['name']!r}: rename one of them"
        )
    families = data.get("families")
    for name, family in families.items() if isinstance(families, dict) else ():
        if isinstance(family, dict) and "recipe" in family:
            try:
                # Before validation, so that the checked study, its fingerprint and its copy hold what was run, whatever
                # happens to the recipe's file later.
                families[name] = expanded(family, path.parent)
            except SpecError as error:
                raise SpecError(f"{path}: family {name}: {error}") from error
    try:
        study = StudySpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(f"{path}: " + sentences(error, StudySpec)) from error
    for folder, name in (("search/samplers", study.search.sampler), ("search/schedulers", study.search.scheduler)):
        if name not in names(folder):
            raise SpecError(f"{path}: " + one_of(folder.split("/")[1].rstrip("s"), name, list(names(folder))))
    try:
        resolved_families(study)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error
    return study


def study_json_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    return StudySpec.model_json_schema()
