"""What a study comes to, in words: the page's first sentences, and the terminal's last."""

from __future__ import annotations

from dataclasses import dataclass

from harness.analysis.verdict import Word
from harness.records.paths import Paths
from harness.report import words
from harness.report.data import StudyData, load_study_data
from harness.report.doubts import doubts
from harness.report.findings import BASE, Advice, Comparison, compare
from harness.report.forgotten import in_short


def conclusion(comparison: Comparison) -> tuple[str, str]:
    """What follows for one task, as the beginning of a sentence and the pipeline that ends it, if one is advised."""
    advice, chosen = comparison.advice
    if chosen is not None:
        return f"For {comparison.name}, use ", chosen.label
    if advice is Advice.KEEP:
        return f"For {comparison.name}, keep the base model as it is", ""
    return f"For {comparison.name}, nothing can be said yet", ""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a study comes to on one task."""

    base_model: str
    task: str
    text: str


def said(study: StudyData) -> list[Said]:
    """For each task: what to use, what that gains and forgets, and how sure that is."""
    found = []
    for comparison in compare(study):
        best = comparison.advice[1]
        facts = []
        if best is not None and best.gain is not None:
            span = comparison.unit.span(best.gain.low, best.gain.high)
            facts.append(f"{comparison.unit.difference(best.gain.mean)} over the base" + (f" ({span})" if span else ""))
        if best is not None and (lost := in_short(best.lost)):
            facts.append(lost)
        head = "".join(conclusion(comparison)) + (f": {'; '.join(facts)}" if facts else "")
        text = " ".join([f"{head}.", how_sure_it_is(study, comparison), *doubts(study, comparison)])
        found.append(Said(base_model=comparison.base_model, task=comparison.task, text=text))
    return found


def said_now(paths: Paths, study: str) -> list[Said]:
    """The same from a study's records as they are now, whether or not the database has them; empty before any confirmed run.

    Args:
        paths: Of the results folder.
        study: Its name; it was started.

    Raises:
        StorageError: When a file of the study is damaged.
    """
    return said(load_study_data(paths, study, confirmed_now=True))


def how_sure_it_is(study: StudyData, comparison: Comparison) -> str:
    """How sure the conclusion is, and from how many seeds and items."""
    verdict, names = comparison.verdict, {c.label: c for c in comparison.contenders}
    if verdict.word is Word.UNTESTABLE:
        return f"That cannot be tested: {verdict.reason}."
    leader = verdict.leader or ""
    second, contrast = next(iter(verdict.against.items()))
    lead = comparison.unit.difference(contrast.difference.mean)
    span = comparison.unit.span(contrast.difference.low, contrast.difference.high)
    runs = words.count(names[leader].level.n if leader in names else comparison.best.level.n, "seed")
    basis = f"from {runs} and {words.count(comparison.items or 0, 'test item')}, corrected over the whole study"
    ahead = f"{_capital(leader)} is ahead of {second} by {lead}" + (f" (95% interval {span})" if span else "")
    if verdict.use:
        return f"{ahead}, and better than every other: {basis}."
    equals = [name for name in verdict.equals if name != leader]
    if verdict.word is Word.EQUIVALENT:
        limit = f"{study.file.smallest_difference:g} points, the smallest difference that matters to this study"
        text = f"{ahead}, but surely it differs from {words.listed(equals)} by less than {limit}: {basis}."
    else:
        text = f"{ahead}, but it was not shown to be better than {words.listed(equals)}: {basis}."
    if comparison.advice[0] is Advice.EQUAL:
        text += " Of those that beat the base, the one that forgets least, and among such the one that costs least, is named."
    return text


def _capital(text: str) -> str:
    return "The base model" if text == BASE else text
