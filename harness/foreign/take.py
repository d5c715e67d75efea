"""Runs of others, from their files to a bundle of records: found, understood, checked, and taken over or refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import SpecError
from harness.files import now
from harness.foreign.build import Built, build
from harness.foreign.columns import selected
from harness.foreign.doubts import Doubt, doubts
from harness.foreign.mapping import load_mapping
from harness.foreign.sources.base import Source
from harness.plugins import load_all
from harness.records.bundle import Bundle, write_bundle
from harness.records.codec import Misfit
from harness.records.paths import Paths
from harness.study.spec import NAME


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What was understood of a file of runs."""

    name: str
    kind: str
    """The kind of source that read it."""
    rows: int
    runs: int
    tasks: Mapping[str, int]
    """Runs by task."""
    base_models: Mapping[str, int]
    methods: Mapping[str, int]
    statuses: Mapping[str, int]
    scores: tuple[str, ...]
    """A line for each: what it is called, how many have it, from where to where it goes."""
    left_out: Mapping[str, int]
    """Reason to rows."""
    repeated: int
    """Runs that are alike in everything that the mapping names."""
    doubts: tuple[Doubt, ...]
    path: str = ""
    """The bundle; empty where nothing was written."""

    @property
    def exit_code(self) -> int:
        """0, or 3 where something contradicts the mapping."""
        return SpecError.exit_code if self.doubts else 0

    def text(self) -> str:
        """For a terminal."""
        lines = [
            f"{self.rows} rows of a {self.kind}, {self.runs} runs",
            f"  tasks: {_counts(self.tasks)}",
            f"  base models: {_counts(self.base_models)}",
            f"  methods: {_counts(self.methods)}",
            f"  ended: {_counts(self.statuses)}",
            *(f"  score {score}" for score in self.scores),
            *(f"  left out: {count} rows ({reason})" for reason, count in self.left_out.items()),
        ]
        if self.repeated:
            lines.append(f"  {self.repeated} runs are alike in all that is mapped: they count as repetitions")
        if self.doubts:
            lines += [f"wrong? {doubt.text}" for doubt in self.doubts]
            lines.append("Nothing was imported.")
        else:
            lines.append(
                f"Written to {self.path}; next: harness database"
                if self.path
                else "Nothing looks wrong; nothing was written."
            )
        return "\n".join(lines)


def _counts(counts: Mapping[str, int], most: int = 8) -> str:
    shown = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    more = f" and {len(shown) - most} more" if len(shown) > most else ""
    return ", ".join(f"{name} {count}" for name, count in shown[:most]) + more


def take(paths: Paths, path: Path, mapping: Path | None, name: str | None, check: bool = False) -> Taken:
    """Import the runs in a file or folder; runs imported under the same name before are replaced.

    Args:
        paths: Of the results folder.
        path: The file or folder.
        mapping: The mapping file, where the kind of source does not know all of its columns.
        name: Under which they are imported; None for the file's.
        check: Whether only to say what was understood.

    Raises:
        SpecError: When nothing can read it, or the mapping and the table do not fit.
        StorageError: When the bundle cannot be written.
    """
    name = name or re.sub(r"[^A-Za-z0-9_.-]+", "_", path.resolve().stem)
    if not NAME.fullmatch(name):
        raise SpecError(f"--name must be letters, digits, dot, dash and underscore, but got {name!r}: choose another")
    kind, source = _source(path)
    meaning = load_mapping(mapping, source.mapping)
    try:
        table = source.table(path)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:  # others decide what stands in their files
        why = " ".join(str(error).split())[:150]
        raise SpecError(
            f"{path} must be readable as {kind}, but is not ({why}): see what wrote it, or name another"
        ) from error
    table = selected(table, meaning.where)
    built = build(table, meaning, name)
    if not built.results:
        why = "; ".join(f"{count} rows: {reason}" for reason, count in built.left_out.items()) or "it has no rows"
        raise SpecError(f"{path} must hold at least one run, but holds none ({why}): name another file or column")
    found = tuple(doubts(built.results, meaning))
    target = ""
    if not (check or found):
        bundle = Bundle(source=meaning.source, made_at=now(), tasks=built.tasks, models=built.models)
        try:
            write_bundle(paths.imported(name), bundle, built.results)
        except Misfit as error:
            raise SpecError(
                f"{path} must hold what a record can, but {error}: correct the table or its units"
            ) from error
        target = str(paths.imported(name))
    return _summary(built, name=name, kind=kind, rows=len(table), doubts=found, path=target)


def _source(path: Path) -> tuple[str, Source]:
    if not path.exists():
        raise SpecError(f"{path} must be a results folder, or a file or folder of runs, but is not there: name another")
    for kind, source in load_all("foreign/sources").items():
        if (reader := source()).reads(path):
            return kind, reader
    known = "; ".join(f"{kind} ({source.summary})" for kind, source in load_all("foreign/sources").items())
    raise SpecError(f"{path} must be of a kind that is known, but is not: {known}")


def _summary(built: Built, *, name: str, kind: str, rows: int, doubts: tuple[Doubt, ...], path: str) -> Taken:
    runs = [result for result in built.results if result.config.steps > 0]
    by_score: dict[str, list[float]] = {}
    for run in runs:
        for score in run.scores:
            better = "higher" if score.higher_is_better else "lower"
            by_score.setdefault(f"{score.metric} of {score.task} ({score.split}, {better} is better)", []).append(
                score.value
            )
    return Taken(
        name=name,
        kind=kind,
        rows=rows,
        runs=len(runs),
        tasks=Counter(run.config.task.name for run in runs),
        base_models=Counter(run.config.pipeline.base_model.name for run in runs),
        methods=Counter(run.config.pipeline.stages[0].method for run in runs),
        statuses=Counter(str(run.status) for run in runs),
        scores=tuple(f"{k}: {len(v)} runs, {min(v):.4g} to {max(v):.4g}" for k, v in sorted(by_score.items())),
        left_out=built.left_out,
        repeated=built.repeated,
        doubts=doubts,
        path=path,
    )
