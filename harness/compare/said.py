"""A comparison in words: the headline, a table for a terminal, and values for a program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.analysis.retained import ANSWERS, Status
from harness.compare.answers import Answer
from harness.compare.judgement import Compared, Comparison, Verdict
from harness.report import words

COLUMNS = ("skill", "status", "metric", "base", "tuned", "lost (95% interval)", "items", "bits per byte", "why")
WORST = 5
"""Items that are shown of a skill."""
LONGEST = 2000
"""Characters of a prompt or answer that are shown; of a longer one its end, where the question stands."""


def headline(comparison: Comparison, model: Compared) -> str:
    """One sentence on one model: whether it kept what the base could do, or what would tell.

    Args:
        comparison: Of which it is.
        model: The model.
    """
    skills, count = model.skills, words.count(len(model.skills), "skill")
    lost = model.having(Status.LOST)
    if lost:
        named = words.listed([f"{skill.pair.name} ({loss(skill)})" for skill in _worst_first(lost)])
        return f"lost: {model.name} lost {len(lost)} of the {count} of {comparison.base}: {named}"
    margin = words.number(100 * comparison.smallest)
    if model.status is Status.KEPT:
        points = f"{margin} points, or {margin} % of a byte's probability"
        return f"kept: {model.name} kept {'its only skill' if len(skills) == 1 else f'all {count}'} of {comparison.base} within {points}"
    parts = [f"{len(model.having(Status.KEPT))} of {count} kept"]
    if few := model.having(Status.TOO_FEW):
        parts.append(f"about {model.items_needed:,} items each would tell for {_names(few)}")
    if bare := model.having(Status.NO_HEADROOM):
        parts.append(f"{_names(bare)} cannot fall, so choose a task that the base can do")
    parts += [f"{skill.pair.name}: {skill.judged.reason}" for skill in model.having(Status.CANNOT_TELL)]
    return f"cannot tell whether {model.name} lost anything of {comparison.base}: {'; '.join(parts)}"


def _names(skills: Sequence[Verdict]) -> str:
    return words.listed([skill.pair.name for skill in skills])


def _worst_first(skills: Sequence[Verdict]) -> list[Verdict]:
    return sorted(skills, key=lambda skill: -skill.judged.measure.share(skill.judged.measure.loss))


def loss(skill: Verdict) -> str:
    """What was lost, in points, or as the share of a byte's probability.

    Args:
        skill: One skill's verdict.
    """
    measure = skill.judged.measure
    share = measure.share(measure.loss)
    if measure.in_nats:
        return f"right answers {words.number(100 * abs(share))} % {'less' if share >= 0 else 'more'} probable by byte"
    size = words.number(abs(share) * (100 if skill.pair.base.span.width else 1))
    unit = "points" if skill.pair.base.span.width else measure.name
    return f"{size} {unit} {'lost' if share >= 0 else 'gained'}"


def interval(skill: Verdict) -> str | None:
    """The 95% interval of a loss; None where nothing is known of it.

    Args:
        skill: One skill's verdict.
    """
    low, high = skill.judged.low, skill.judged.high
    if low is None or high is None:
        return None
    factor = 100 if skill.judged.measure.in_nats or skill.pair.base.span.width else 1
    ends = [words.number(factor * max(-1.0, min(1.0, end)) if factor > 1 else end) for end in (low, high)]
    return f"{ends[0]} to {ends[1]}"


def cells(skill: Verdict) -> tuple[str | None, ...]:
    """A row of the table, without the skill's name.

    Args:
        skill: One skill's verdict.
    """
    base, tuned = skill.pair.sides
    unit = words.Unit(base.metric, base.higher_is_better, base.span)
    span = interval(skill)
    bits = skill.pair.bits()
    surprise = f"{bits[0].mean():.3f} to {bits[1].mean():.3f}" if bits else None
    return (
        str(skill.status),
        base.metric.replace("_", " "),
        unit.level(base.value),
        unit.level(tuned.value),
        f"{loss(skill)} ({span})" if span else loss(skill),
        f"{len(skill.pair.items):,}",
        surprise,
        skill.judged.reason,
    )


def text(comparison: Comparison) -> str:
    """For a terminal; the last lines are the headlines.

    Args:
        comparison: What was found.
    """
    lines: list[str] = []
    for model in comparison.models:
        rows = [COLUMNS, *((skill.pair.name, *(cell or "" for cell in cells(skill))) for skill in model.skills)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
        lines += [f"{model.name} against {comparison.base}", ""]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
        lines.append("")
    lines += [f"note: {note}" for note in comparison.notes]
    lines += [headline(comparison, model) for model in comparison.models]
    return "\n".join(lines)


def values(comparison: Comparison) -> dict[str, Any]:
    """For a program; what is not known is null.

    Args:
        comparison: What was found.
    """
    return {
        "base": comparison.base,
        "smallest_points": 100 * comparison.smallest,
        "exit_code": comparison.exit_code,
        "notes": list(comparison.notes),
        "models": [
            {
                "model": model.name,
                "status": str(model.status),
                "headline": headline(comparison, model),
                "items_needed": model.items_needed,
                "skills": [_skill(skill) for skill in model.skills],
            }
            for model in comparison.models
        ],
    }


def _skill(skill: Verdict) -> dict[str, Any]:
    judged, flips, bits = skill.judged, skill.flips, skill.pair.bits()
    base, tuned = skill.pair.sides
    measure = judged.measure
    return {
        "skill": skill.pair.name,
        "status": str(judged.status),
        "reason": judged.reason,
        "metric": base.metric,
        "base": _finite(base.value),
        "tuned": _finite(tuned.value),
        "judged_by": measure.name,
        "lost": _finite(measure.share(measure.loss)),
        "low": judged.low,
        "high": judged.high,
        "p": judged.p,
        "items": len(skill.pair.items),
        "items_needed": judged.items_needed,
        "base_" + ANSWERS: float(bits[0].mean()) if bits else None,
        "tuned_" + ANSWERS: float(bits[1].mean()) if bits else None,
        "right_to_wrong": flips.lost if flips else None,
        "wrong_to_right": flips.gained if flips else None,
        "worst": [_item(*item) for item in skill.worst(WORST)],
    }


def _item(base: Answer, tuned: Answer) -> dict[str, Any]:
    return {
        "item": base.item,
        "prompt": base.prompt,
        "right": base.right,
        "base": {"given": base.given, "value": _finite(base.value), "bits": base.bits},
        "tuned": {"given": tuned.given, "value": _finite(tuned.value), "bits": tuned.bits},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
