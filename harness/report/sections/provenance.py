"""How the study was run: study file, seeds, versions and hardware, and where these differ inside a comparison."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from harness.report import words
from harness.report.data import StudyData
from harness.report.markup import Column, Html, details, join, listing, paragraph, table, tag
from harness.report.sections.base import Section

if TYPE_CHECKING:
    from pandas import DataFrame

SEEDS_SHOWN = 12


class Provenance(Section):
    """Everything needed to run it again, and what makes scores doubtful."""

    summary = "Study file, seeds, versions, hardware."
    title: ClassVar[str] = "How it was run"
    order: ClassVar[int] = 90
    nothing: ClassVar[str] = "Nothing has run yet, so there is nothing to say of versions and hardware."

    def render(self, study: StudyData) -> Html | None:
        """Warnings first, then the facts, then the study file."""
        study_file = details("The study file", tag("pre", tag("code", _yaml(study))))
        if study.ran.empty:
            return paragraph(self.nothing, kind="absent") + study_file
        return _warnings(study) + _facts(study) + _notes(study) + study_file


def _warnings(study: StudyData) -> Html:
    """Versions or hardware that differ inside one comparison move scores, so they are named."""
    found = []
    for (model, task, split), trials in study.ran.groupby(["base_model", "task", "split"], sort=True):
        differing = [
            f"{name} ({words.listed(sorted(values))})"
            for name, values in _environment(trials).items()
            if len(values) > 1
        ]
        if differing:
            found.append(f"the {split} scores for {task} on {model} come from different {'; '.join(differing)}.")
    if not found:
        return paragraph(
            "Within each comparison all trials ran with the same library versions and on the same hardware."
        )
    return join(paragraph(text, kind="warning") for text in found)


def _environment(trials: DataFrame) -> dict[str, set[str]]:
    """By name of library or property: the values that occur."""
    found: dict[str, set[str]] = {}
    for column, name in (("hardware", "hardware"), ("python", "Python"), ("harness_version", "harness")):
        found[name] = set(trials[column].dropna().astype(str)) - {""}
    for text in trials["versions"].dropna().unique():
        for library, version in json.loads(text).items():
            found.setdefault(str(library), set()).add(str(version))
    return found


def _facts(study: StudyData) -> Html:
    ran, spec = study.ran, study.spec
    seeds = [f"{seed:.0f}" for seed in sorted(ran[ran["role"] == "confirm"]["seed"].dropna().unique())]
    more = f" and {len(seeds) - SEEDS_SHOWN} more" if len(seeds) > SEEDS_SHOWN else ""
    started = ran["started_at"].dropna()
    search = spec.get("search", {})
    rows: list[tuple[str, str | None]] = [
        ("First and last trial started (UTC)", f"{started.min():%Y-%m-%d %H:%M} and {started.max():%Y-%m-%d %H:%M}"
         if len(started) else None),
        ("Seed of the study", str(spec["seed"]) if "seed" in spec else None),
        ("Fresh seeds of the confirm step", (", ".join(seeds[:SEEDS_SHOWN]) + more) or None),
        ("Search", f"sampler {search['sampler']}, scheduler {search['scheduler']}" if search else None),
        ("Budget of each family, task and base model", _budget(study)),
        ("Optimiser steps of a full run", words.listed([f"{s:.0f}" for s in sorted(ran["steps"].unique()) if s]) or None),
        ("Source code commit", words.listed(sorted(set(ran["git_commit"].dropna()))) if ran["git_commit"].notna().any()
         else None),
    ]  # fmt: skip
    rows += [(name, words.listed(sorted(values)) if values else None) for name, values in _environment(ran).items()]
    return table("How the trials were run", [Column("What"), Column("Value")], rows)


def _budget(study: StudyData) -> str | None:
    budget = {key: value for key, value in study.spec.get("budget", {}).items() if value is not None}
    return ", ".join(f"{words.number(value)} {key.replace('_', ' ')}" for key, value in budget.items()) or None


def _notes(study: StudyData) -> Html:
    """What trials noted beside their scores, each note once, with the number of trials that made it."""
    notes = study.ran["notes"].explode().dropna().value_counts()
    if notes.empty:
        return Html("")
    lines = [f"{note} ({words.count(int(number), 'trial')})" for note, number in sorted(notes.items())]
    return tag("h3", "What the trials noted") + listing(lines)


def _yaml(study: StudyData) -> str:
    import yaml

    return str(yaml.safe_dump(_without_empty(study.spec), sort_keys=False, allow_unicode=True))


def _without_empty(value: object) -> object:
    """The study without keys that were left out."""
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item not in (None, {}, [])}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value
