"""What the study accepts, in words: the best pipeline within it, and what it costs to ask for that."""

from __future__ import annotations

from harness.analysis.accepted import Accepted, Needs, accepted, best_within
from harness.report import words
from harness.report.findings import Comparison, Contender
from harness.study.accept import Limits


def within_limits(comparison: Comparison, limits: Limits) -> Accepted:
    """Which contenders of a comparison keep the limits.

    Args:
        comparison: Confirmed pipelines.
        limits: What the study accepts.
    """
    return accepted({contender.label: _needs(contender) for contender in comparison.contenders}, limits)


def _needs(contender: Contender) -> Needs:
    return Needs(
        forgetting=contender.worst.size.value if contender.worst else None,
        seconds=contender.train_s,
        memory_bytes=contender.peak_memory_bytes,
    )


def limits_in_words(comparison: Comparison, limits: Limits) -> str:
    """The best within what is accepted, next to what that costs; one paragraph.

    Args:
        comparison: Confirmed pipelines.
        limits: What the study accepts.
    """
    found = within_limits(comparison, limits)
    gains = {c.label: c.gain.mean for c in comparison.contenders if c.gain is not None}
    best, cost = best_within(gains, found)
    head = f"This study accepts {_limits(limits)}. "
    if not gains:
        return head + "No pipeline has a comparable base score, so that what that costs is not known."
    if best is None:
        head += "No pipeline within that has a higher mean than the base, which forgets nothing"
    else:
        head += f"Within that, {best} has the highest mean gain, {comparison.unit.difference(gains[best])}"
    tail = "; without these limits no mean is higher." if cost <= 0 else ""
    if cost > 0:
        tail = f"; without these limits {max(gains, key=lambda name: gains[name])} has {comparison.unit.difference(cost)} more."
    refused = "; ".join(f"{name} {words.listed(list(reasons))}" for name, reasons in found.refused.items())
    return head + tail + (f" Refused: {refused}." if refused else "")


def _limits(limits: Limits) -> str:
    said = []
    if limits.forgetting is not None:
        said.append(f"at most {words.number(100 * limits.forgetting)} points lost of any skill")
    if limits.seconds is not None:
        said.append(f"at most {words.seconds(limits.seconds)} of training")
    if limits.memory_bytes is not None:
        said.append(f"at most {words.size(limits.memory_bytes)} of memory")
    return words.listed(said)
