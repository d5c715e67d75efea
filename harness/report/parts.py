"""What a group's one row is made of: a table that opens below it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from harness.report import words
from harness.report.data import StudyData
from harness.report.findings import Comparison, Contender
from harness.report.markup import Column, Html, details, table
from harness.report.rows import PartRow


def opened(study: StudyData, whole: str, comparison: Comparison, lost: bool = False) -> Html:
    """The parts of a group by confirmed pipeline, means over seeds; nothing for a task that has no parts.

    Args:
        study: Whose confirmed trials scored it.
        whole: The group.
        comparison: Whose pipelines are shown.
        lost: Whether to show what was lost (positive) or gained since the base, instead of scores.
    """
    contenders = comparison.contenders
    rows = [row for row in study.parts if row.whole == whole and any(row.key in c.keys for c in contenders)]
    if not rows:
        return Html("")
    by_place: dict[int, list[PartRow]] = {}
    for row in rows:
        by_place.setdefault(row.position, []).append(row)
    depths: dict[str, int] = {whole: 0}
    shown = []
    for place in sorted(by_place):
        own = by_place[place]
        depth = depths.setdefault(own[0].scored, depths.get(own[0].parent, 0) + 1)
        shown.append(_cells(own, depth, contenders, lost))
    columns = [Column("Part"), Column("Metric"), Column("Items", number=True), Column("Base", number=True)]
    columns += [Column(contender.label, number=True) for contender in contenders]
    count = words.count(len(shown), "part")
    title = f"{whole} and its {count}" + (f", and what tuning for {comparison.name} lost of each" if lost else "")
    return details(title, table(f"{title}, means over seeds", columns, shown))


def _cells(own: Sequence[PartRow], depth: int, contenders: Sequence[Contender], lost: bool) -> list[str | None]:
    """A part's row: deeper parts stand further in."""
    first = own[0]
    name = "\u2003" * (depth - 1) + first.scored + ("" if first.counts else " (does not count)")
    values = []
    for contender in contenders:
        mine = [row for row in own if row.key in contender.keys]
        if not lost:
            values.append(first.unit.level(fmean(row.value for row in mine)) if mine else None)
            continue
        known = [row.sign * (row.base_value - row.value) for row in mine if row.base_value is not None]
        values.append(first.unit.difference(fmean(known)) if known else None)
    return [name, first.metric.replace("_", " "), words.number(first.n), first.unit.level(first.base_value), *values]
