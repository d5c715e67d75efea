"""Page one: what to use, what it gains, what it forgets, what it costs, and how sure that is."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from harness.analysis.statistics import Interval
from harness.analysis.verdict import Across, Word
from harness.records.scale import Scale
from harness.report import words
from harness.report.accepting import limits_in_words
from harness.report.conclusion import conclusion, how_sure_it_is
from harness.report.data import StudyData
from harness.report.doubts import doubts
from harness.report.findings import BASE, Advice, Comparison, Contender, compare, overall, places
from harness.report.forgotten import count_lost, how_sure, in_short
from harness.report.markup import Column, Html, details, facts, join, paragraph, table, tag
from harness.report.recipe import in_words, settings, to_yaml
from harness.report.rows import known_total, total
from harness.report.sections.base import Section

_POINTS = words.Unit("share of the scale", scale=Scale(low=0.0, high=1.0))
NEARLY_ALL = 0.9
"""Share of a base's weights from which on nothing is said: adapters on all linear layers leave out embeddings and norms."""


class Answer(Section):
    """The recommendation per task and base model, and the study's total spend."""

    summary = "What to use, what it gains, forgets and costs."
    title: ClassVar[str] = "The answer"
    order: ClassVar[int] = 0
    nothing: ClassVar[str] = "Nothing has run yet: run harness search and harness confirm on this study."

    def render(self, study: StudyData) -> Html | None:
        """One card per comparison, the open questions, the spend; a summary table when there are several."""
        if not study.ran:
            return None
        found = compare(study)
        cards = join(_card(study, comparison) for comparison in found)
        summary = _across(study) + _summary(study, found) if len(found) > 1 else Html("")
        return _halted(study) + summary + _open_questions(study) + cards + _spend(study)


def _halted(study: StudyData) -> Html:
    """That the study was not let end."""
    return paragraph(f"{study.halt.text}.", kind="warning") if study.halt else Html("")


def _across(study: StudyData) -> Html:
    """Who is best on average over the tasks: the question that a study has most power for."""
    parts = []
    for model, joint in overall(study).items():
        lead = _POINTS.difference(joint.lead.mean) if joint.lead else None
        start = f"On average over {words.count(joint.tasks, 'task')} on {model}, {joint.leader} leads by {lead}"
        others = words.listed(list(joint.others))
        sure = (
            f"and is better than {others}"
            if joint.word is Word.BETTER
            else f"but these seeds and items do not show that it is better than {others}"
        )
        p = "" if joint.p is None else f" (p {'' if joint.p < 0.001 else '= '}{words.p_value(joint.p)})"
        parts.append(paragraph(f"{start}, {sure}{p}.{_left_out(study, model, joint)}", kind="lead"))
    return join(parts)


def _left_out(study: StudyData, model: str, joint: Across) -> str:
    """Families of which the question over all tasks says nothing."""
    named = {c.label for found in compare(study) if found.base_model == model for c in found.contenders}
    missing = sorted(named - {joint.leader, *joint.others})
    return f" That says nothing of {words.listed(missing)}, not confirmed on all of these tasks." if missing else ""


def _summary(study: StudyData, found: tuple[Comparison, ...]) -> Html:
    rows: list[tuple[str | None, ...]] = []
    for comparison in found:
        advice, chosen = comparison.advice
        start = (comparison.task, comparison.base_model, _use(advice, chosen))
        if chosen is None:  # the row is about the base then, or about nothing
            rows.append((*start, comparison.unit.level(comparison.base), None, None, None))
            continue
        gain = comparison.unit.difference(chosen.gain.mean) if chosen.gain else None
        level = comparison.unit.level(chosen.level.mean)
        rows.append((*start, level, gain, in_short(chosen.lost), words.seconds(chosen.train_s)))
    columns = [Column("Task"), Column("Base model"), Column("Use"), Column("Test score", number=True)]
    columns += [Column("Gain", number=True), Column("Skills"), Column("Training", number=True)]
    return table("What to use for each task", columns, rows)


def _use(advice: Advice, chosen: Contender | None) -> str:
    if chosen is not None:
        return chosen.label
    return BASE if advice is Advice.KEEP else "cannot be said"


def _open_questions(study: StudyData) -> Html:
    """Pairs of base model and task without a confirmed result, and pairs with several that may not be compared."""
    answered = [(comparison.base_model, comparison.task) for comparison in compare(study)]
    reasons = {place: _why_all_failed(study, place) for place in places(study) if place not in answered}
    unanswered = [f"{task} on {model}" for (model, task), reason in reasons.items() if reason is None]
    split = [f"{task} on {model}" for model, task in dict.fromkeys(answered) if answered.count((model, task)) > 1]
    parts = [
        paragraph(f"No answer for {task} on {model}: {reason}", kind="warning")
        for (model, task), reason in reasons.items()
        if reason is not None
    ]
    if unanswered:
        parts.append(
            paragraph(
                f"No answer yet for {words.listed(unanswered)}: no pipeline was confirmed on the test split. "
                "Run harness confirm on this study; the section on failures says what went wrong, if anything did."
            )
        )
    if split:
        parts.append(
            paragraph(
                f"the confirmed scores for {words.listed(split)} were measured in ways that may not be compared "
                "(tokenizer, prompt, data, metric or evaluator differ); each way has its own answer below.",
                kind="warning",
            )
        )
    return join(parts)


def _why_all_failed(study: StudyData, place: tuple[str, str]) -> str | None:
    """What most often ended the trials of a base model and task; None where one of them has a score, or none ran."""
    tuned = [trial for trial in study.ran if (trial.base_model, trial.task) == place and trial.role != "base"]
    if not tuned or not all(trial.failed for trial in tuned):
        return None
    (reason, count), *_ = Counter(trial.reason or "for no known reason" for trial in tuned).most_common(1)
    often = "" if count == len(tuned) else f" {count} times"
    return f"of {words.count(len(tuned), 'trial')} none has a score. What ended them{often}: {reason}."


def _card(study: StudyData, comparison: Comparison) -> Html:
    advice, chosen = comparison.advice
    best = chosen or comparison.best
    start, label = conclusion(comparison)
    heading = tag("h3", start, tag("em", label)) if label else tag("h3", start)
    if chosen is not None:
        lead = f"{in_words(chosen.stages)}: {settings(chosen.stages)}."
    elif advice is Advice.KEEP:
        lead = f"No confirmed pipeline was shown to beat it; the closest is {best.label}."
    else:
        lead = _highest(comparison)
    paste = details(
        "The pipeline as YAML, to paste into a study file",
        tag("pre", tag("code", to_yaml(best, comparison.base_model))),
    )
    content = (
        heading,
        paragraph(lead, kind="lead"),
        _facts(study, comparison, best, advised=chosen is not None),
        paragraph(how_sure_it_is(study, comparison)),
        join(paragraph(doubt, kind="warning") for doubt in doubts(study, comparison)),
        _accepted(comparison),
        _reach(comparison),
        paste,
    )
    return tag("article", *content, class_="card")


def _highest(comparison: Comparison) -> str:
    """Who has the highest mean, where nothing is advised; and whether the base is there to compare with."""
    best = [c.label for c in comparison.contenders if c.level.mean == comparison.best.level.mean]
    text = f"The highest mean is that of {words.listed(best)}."
    if comparison.base is None:
        text += " The base model has no score to compare with, so whether tuning pays is not known."
    elif comparison.verdict.word is not Word.UNTESTABLE and not comparison.has_base:
        text += " What the base model answered to these items is not known, nor therefore whether tuning pays."
    return text


def _facts(study: StudyData, comparison: Comparison, best: Contender, advised: bool) -> Html:
    unit, of = comparison.unit, "" if advised else f" of {best.label}"
    gain = best.gain
    levels = [f"test score {unit.level(best.level.mean)}"]
    levels += [f"base {unit.level(comparison.base)}"] if comparison.base is not None else []
    levels += [f"chance {unit.level(comparison.chance)}"] if comparison.chance is not None else []
    if comparison.majority is not None:
        levels.append(f"the most frequent right answer to every item {unit.level(comparison.majority)}")
    costs = [f"peak memory {words.size(best.peak_memory_bytes)}"] if best.peak_memory_bytes else []
    costs += [f"{words.money(best.money, study.file.currency)} per run" if best.money is not None else "not priced"]
    return facts(
        (
            (
                f"Gain{of} over the base model",
                unit.difference(gain.mean) if gain else None,
                (_interval(unit, gain) if gain else "no comparable base score") + "; " + ", ".join(levels),
            ),
            (
                "What was forgotten" if advised else f"What {best.label} forgot",
                count_lost(best.lost) if best.lost else None,
                f"{in_short(best.lost)}; {how_sure(best.lost)}" if best.lost else "no off-target skill was scored",
            ),
            ("Training time of one run alone", words.seconds(best.train_s), ", ".join(costs)),
            (
                "Seeds",
                words.number(best.level.n),
                f"{words.count(best.failures, 'run')} of it failed" if best.failures else "no run of it failed",
            ),
        )
    )


def _interval(unit: words.Unit, estimate: Interval) -> str:
    span = unit.span(estimate.low, estimate.high)
    return f"95% interval {span}" if span else "no interval"


def _accepted(comparison: Comparison) -> Html:
    """The best within what the study accepts, next to what it costs to ask for that."""
    return Html("") if comparison.limits.is_none else paragraph(limits_in_words(comparison))


def _reach(comparison: Comparison) -> Html:
    """What pipelines could not change of the base, in one sentence; nothing where all reached nearly everything."""
    parts = [
        f"{contender.label} reached {words.listed([_share(share) for share in contender.reach])} of the base's weights"
        + (" (experts were left as they are)" if contender.leaves_experts else "")
        for contender in comparison.contenders
        if contender.reach and max(contender.reach) < NEARLY_ALL
    ]
    return paragraph(f"{'; '.join(parts)}.") if parts else Html("")


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%" if share else "none, with what trains beside them,"


def _spend(study: StudyData) -> Html:
    own = [trial for trial in study.ran if not trial.reused]
    reused = [trial for trial in study.ran if trial.reused]
    failed = [trial for trial in own if trial.failed]
    lost_s = sum(study.lost.values())
    spent_s = total(trial.total_s for trial in own) + lost_s
    trial_time, cpu_time, gpu_time = (
        words.seconds(seconds) or "0 s"
        for seconds in (spent_s, total(trial.cpu_s for trial in own), total(trial.gpu_s for trial in own))
    )
    aside = f" ({words.seconds(lost_s)} of it in attempts that were lost)" if lost_s else ""
    text = f"In total the study ran {words.count(len(own), 'trial')} in {trial_time} of trial time{aside}, "
    text += f"{cpu_time} of CPU time and {gpu_time} of GPU time"
    if (money := known_total(trial.money for trial in own)) is not None:
        text += f", for {words.money(money, study.file.currency)}"
    text += f". Of these, {words.count(len(failed), 'trial')} ended without a score"
    text += f" and took {words.seconds(total(trial.total_s for trial in failed))}." if failed else "."
    if reused:
        saved = words.seconds(total(trial.total_s for trial in reused))
        text += f" {words.count(len(reused), 'more trial')} worth {saved} were reused from earlier work, at no cost."
    return tag("h3", "What the study spent") + paragraph(text)
