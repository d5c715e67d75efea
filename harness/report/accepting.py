"""What the study accepts, in words: the best pipeline within it, and what it costs to ask for that."""

from __future__ import annotations

from dataclasses import replace

from harness.report import words
from harness.report.findings import Comparison, Contender
from harness.study.accept import Limits


def limits_in_words(comparison: Comparison) -> str:
    """The best within what the study accepts, next to what that costs; one paragraph.

    Args:
        comparison: Confirmed pipelines.
    """
    (_, chosen), (_, freely) = comparison.advice, replace(comparison, limits=Limits()).advice
    within = "nothing was shown to beat the base" if chosen is None else f"the answer is {chosen.label}"
    refused = "; ".join(f"{name} {words.listed(list(why))}" for name, why in comparison.accepted.refused.items())
    text = f"This study accepts {_limits(comparison.limits)}. Within that, {within}; {_without(comparison, chosen, freely)}."
    return text + (f" Refused: {refused}." if refused else "")


def _without(comparison: Comparison, chosen: Contender | None, freely: Contender | None) -> str:
    """What the answer would be without limits."""
    if freely is chosen or freely is None:
        return "without these limits that would be the same"
    more = (freely.gain.mean if freely.gain else 0.0) - (chosen.gain.mean if chosen and chosen.gain else 0.0)
    return f"without these limits it would be {freely.label}, {comparison.unit.difference(more)}"


def _limits(limits: Limits) -> str:
    said = []
    if limits.forgetting is not None:
        said.append(f"at most {words.number(100 * limits.forgetting)} points lost of any skill")
    if limits.seconds is not None:
        said.append(f"at most {words.seconds(limits.seconds)} of training")
    if limits.memory_bytes is not None:
        said.append(f"at most {words.size(limits.memory_bytes)} of memory")
    return words.listed(said)
