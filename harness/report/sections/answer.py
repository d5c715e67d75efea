"""Page one: what to use, what it gains, what it forgets, what it costs, and how sure that is."""

from __future__ import annotations

from typing import ClassVar

from harness.analysis.statistics import Interval
from harness.report import words
from harness.report.accepting import limits_in_words
from harness.report.data import StudyData
from harness.report.findings import Comparison, Contender, compare, places
from harness.report.forgotten import how_sure, in_short
from harness.report.markup import Column, Html, details, facts, join, paragraph, table, tag
from harness.report.recipe import in_words, settings, to_yaml
from harness.report.rows import known_total, total
from harness.report.sections.base import Section


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
        summary = _summary(study, found) if len(found) > 1 else Html("")
        return summary + _open_questions(study) + cards + _spend(study)


def _summary(study: StudyData, found: tuple[Comparison, ...]) -> Html:
    rows = []
    for comparison in found:
        best = comparison.best
        rows.append(
            (
                comparison.task,
                comparison.base_model,
                best.label if _helps(best) else "the base model as it is",
                comparison.unit.level(best.level.mean),
                comparison.unit.difference(best.gain.mean) if best.gain else None,
                in_short(best.lost),
                words.seconds(best.train_s),
            )
        )
    columns = [Column("Task"), Column("Base model"), Column("Use"), Column("Test score", number=True)]
    columns += [Column("Gain", number=True), Column("Skills"), Column("Training", number=True)]
    return table("What to use for each task", columns, rows)


def _open_questions(study: StudyData) -> Html:
    """Pairs of base model and task without a confirmed result, and pairs with several that may not be compared."""
    answered = [(comparison.base_model, comparison.task) for comparison in compare(study)]
    unanswered = [f"{task} on {model}" for model, task in places(study) if (model, task) not in answered]
    split = [f"{task} on {model}" for model, task in dict.fromkeys(answered) if answered.count((model, task)) > 1]
    parts = []
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


def _helps(best: Contender) -> bool:
    return best.gain is None or best.gain.mean > 0


def _card(study: StudyData, comparison: Comparison) -> Html:
    best = comparison.best
    if _helps(best):
        heading = tag("h3", f"For {comparison.name}, use ", tag("em", best.label))
        lead = f"{in_words(best.stages)}: {settings(best.stages)}."
    else:
        heading = tag("h3", f"For {comparison.name}, keep the base model as it is")
        lead = f"No confirmed pipeline beats it; the closest is {best.label}."
    paste = details(
        "The pipeline as YAML, to paste into a study file",
        tag("pre", tag("code", to_yaml(best, comparison.base_model))),
    )
    content = (
        heading,
        paragraph(lead, kind="lead"),
        _doubt(best),
        _facts(study, comparison),
        _verdict(comparison),
        _accepted(study, comparison),
        paste,
    )
    return tag("article", *content, class_="card")


def _doubt(best: Contender) -> Html:
    """A warning where the interval of the gain reaches zero."""
    gain = best.gain
    # Where the mean itself is not positive the card says "keep the base model" already.
    if gain is None or gain.low is None or gain.high is None or gain.low > 0 or gain.mean <= 0:
        return Html("")
    return paragraph(
        "the interval of the gain includes zero, so these seeds do not show that it beats the base model.",
        kind="warning",
    )


def _facts(study: StudyData, comparison: Comparison) -> Html:
    best, unit = comparison.best, comparison.unit
    gain = best.gain
    levels = [f"test score {unit.level(best.level.mean)}"]
    levels += [f"base {unit.level(comparison.base)}"] if comparison.base is not None else []
    levels += [f"chance {unit.level(comparison.chance)}"] if comparison.chance is not None else []
    costs = [f"peak memory {words.size(best.peak_memory_bytes)}"] if best.peak_memory_bytes else []
    costs += [f"{words.money(best.money, study.file.currency)} per run" if best.money is not None else "not priced"]
    return facts(
        (
            (
                "Gain over the base model",
                unit.difference(gain.mean) if gain else None,
                (_interval(unit, gain) if gain else "no comparable base score") + "; " + ", ".join(levels),
            ),
            (
                "What was forgotten",
                in_short(best.lost),
                how_sure(best.lost) if best.lost else "no off-target skill was scored",
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
    return f"95% interval {span}" if span else "no interval from one seed"


def _verdict(comparison: Comparison) -> Html:
    """Whether the leader is really ahead of the runner-up, in plain words."""
    if len(comparison.contenders) < 2:
        return paragraph("It was the only pipeline confirmed, so there is no runner-up to tell it from.")
    best, second = comparison.best, comparison.contenders[1]
    if second.behind is not None and second.undetermined:
        lead = f"by the same {comparison.unit.difference(second.behind.mean)}"
        return paragraph(
            f"It is ahead of the runner-up, {second.label}, {lead} in each of {words.count(second.behind.n, 'seed')}. "
            "Differences that do not vary between seeds cannot be judged: a test needs their spread."
        )
    if second.behind is None or second.p is None:
        return paragraph(f"The runner-up, {second.label}, shares too few seeds with it for a test.")
    ahead = f"It is ahead of the runner-up, {second.label}, by {comparison.unit.difference(second.behind.mean)}"
    test = (
        f"paired test over {words.count(second.behind.n, 'seed')}, p = {words.p_value(second.p)} after Holm's correction"
    ).replace("= <", "<")
    if second.p < 0.05:
        return paragraph(f"{ahead}, and that difference is significant ({test}).")
    cheaper = [
        text
        for text, better in (
            ("trains faster", _less(second.train_s, best.train_s)),
            ("forgets less", _less(_lost(second), _lost(best))),
        )
        if better
    ]
    hint = f" {second.label} {words.listed(cheaper)}: it may be the wiser choice." if cheaper else ""
    return paragraph(f"{ahead}, but these seeds cannot tell the two apart ({test}).{hint}")


def _accepted(study: StudyData, comparison: Comparison) -> Html:
    """The best within what the study accepts, next to what it costs to ask for that."""
    limits = study.file.limits
    return Html("") if limits.is_none else paragraph(limits_in_words(comparison, limits))


def _less(value: float | None, other: float | None) -> bool:
    # A few per cent less is no reason to prefer one.
    return value is not None and other is not None and value < 0.95 * other


def _lost(contender: Contender) -> float | None:
    return contender.worst.size.value if contender.worst else None


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
