"""How the study was run: study file, seeds, versions and hardware, and where these differ inside a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

from harness.database.rows import grouped
from harness.plugins import changed
from harness.report import words
from harness.report.data import StudyData
from harness.report.markup import Column, Html, details, join, listing, paragraph, table, tag
from harness.report.rows import TrialRow
from harness.report.sections.base import Section

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
        if not study.ran:
            return paragraph(self.nothing, kind="absent") + study_file
        return _warnings(study) + _facts(study) + _notes(study) + study_file


def _warnings(study: StudyData) -> Html:
    """Versions, plug-in code or hardware that differ inside one comparison move scores, so they are named."""
    sentences = [
        f"the code of {plugin} is not what it was when some of these trials ran."
        for plugin in sorted({plugin for trial in study.ran for plugin in changed(trial.plugins)})
    ]
    groups = grouped(study.ran, lambda trial: (trial.base_model, trial.task, trial.split or ""))
    for (model, task, split), trials in groups.items():
        differing = [
            f"{name} ({words.listed(sorted(values))})"
            for name, values in _environment(trials).items()
            if len(values) > 1
        ]
        # Trials of one split, task and base model are ranked against each other, so only there it matters.
        if differing:
            sentences.append(f"the {split} scores for {task} on {model} come from different {'; '.join(differing)}.")
    if not sentences:
        return paragraph(
            "Within each comparison all trials ran with the same library versions, the same code of plug-ins, and on the "
            "same hardware."
        )
    return join(paragraph(text, kind="warning") for text in sentences)


def _environment(trials: Iterable[TrialRow]) -> dict[str, set[str]]:
    """By name of library or property: the values that occur."""
    values: dict[str, set[str]] = {"hardware": set(), "Python": set(), "harness": set()}
    for trial in trials:
        own = {"hardware": trial.hardware, "Python": trial.python, "harness": trial.harness_version}
        code = {f"code of {plugin}": digest for plugin, digest in trial.plugins.items()}
        for name, value in {**own, **trial.versions, **code}.items():
            known = values.setdefault(name, set())
            if value:
                known.add(value)
    return values


def _facts(study: StudyData) -> Html:
    file = study.file
    seeds = [str(seed) for seed in sorted({t.seed for t in study.ran if t.role == "confirm" and t.seed is not None})]
    more = f" and {len(seeds) - SEEDS_SHOWN} more" if len(seeds) > SEEDS_SHOWN else ""
    started = sorted(trial.started_at for trial in study.ran if trial.started_at is not None)
    span = f"{started[0]:%Y-%m-%d %H:%M} and {started[-1]:%Y-%m-%d %H:%M}" if started else None
    steps = [str(number) for number in sorted({trial.steps for trial in study.ran if trial.steps})]
    commits = sorted({trial.git_commit for trial in study.ran if trial.git_commit is not None})
    rows: list[tuple[str, str | None]] = [
        ("First and last trial started (UTC)", span),
        ("Seed of the study", None if file.seed is None else str(file.seed)),
        ("Fresh seeds of the confirm phase", (", ".join(seeds[:SEEDS_SHOWN]) + more) or None),
        ("Search", f"sampler {file.sampler}, scheduler {file.scheduler}" if file.sampler else None),
        ("Budget of each family, task and base model", _budget(study)),
        ("Optimiser steps of a full run", words.listed(steps) if steps else None),
        ("Source code commit", words.listed(commits) if commits else None),
    ]
    rows += [(f"Prompts of {model}", words.listed(sorted(forms))) for model, forms in _forms(study.ran).items()]
    rows += [
        (name, words.listed(sorted(values)) if values else None) for name, values in _environment(study.ran).items()
    ]
    return table("How the trials were run", [Column("What"), Column("Value")], rows)


def _forms(trials: Iterable[TrialRow]) -> dict[str, set[str]]:
    """By base model: whether its prompts were plain texts or rendered in a chat template, and in which."""
    forms: dict[str, set[str]] = {}
    for trial in trials:
        form = f"chat template {trial.chat_template[:8]}" if trial.chat_template else "plain text"
        forms.setdefault(trial.base_model, set()).add(form)
    return forms


def _budget(study: StudyData) -> str | None:
    amounts = (f"{words.number(amount)} {unit.replace('_', ' ')}" for unit, amount in study.file.budget.items())
    return ", ".join(amounts) or None


def _notes(study: StudyData) -> Html:
    """What trials noted beside their scores, each note once, with the number of trials that made it."""
    notes = Counter(note for trial in study.ran for note in trial.notes or ())
    if not notes:
        return Html("")
    lines = [f"{note} ({words.count(number, 'trial')})" for note, number in sorted(notes.items())]
    return tag("h3", "What the trials noted") + listing(lines)


def _yaml(study: StudyData) -> str:
    import yaml

    return str(yaml.safe_dump(_without_empty(study.file.content), sort_keys=False, allow_unicode=True))


def _without_empty(value: object) -> object:
    """The study without keys that were left out."""
    # The recorded study names every setting; those left empty would hide the ones that were made.
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item not in (None, {}, [])}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value
