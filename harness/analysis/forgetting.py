"""How much was forgotten, as a share: the one definition that report, database, export and advice have.

Points of accuracy, perplexities and bits per byte do not add up as they are. What each of them says of a model does: an
accuracy that falls by 5 points of 100 lost a twentieth of its scale; a perplexity that rises by a twentieth says that each
token is a twentieth less probable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from harness.metrics.base import Surprise, surprises
from harness.records.scale import Scale


@dataclass(frozen=True)
class Size:
    """How much was lost; negative where something was gained."""

    value: float
    """A share, at most 1, or units of a metric that has none."""
    is_share: bool


def size_lost(base: float, tuned: float, metric: str, higher_is_better: bool, scale: Scale) -> Size:
    """What lies between two scores, by what the metric means.

    Args:
        base: The base's score, in the metric's own unit.
        tuned: The tuned model's.
        metric: Its name.
        higher_is_better: False for losses and perplexities.
        scale: Between which values it lies, as declared.

    Returns:
        A share of the scale where both its ends are declared; of perplexities and bits the share of a token's (byte's)
        probability that was lost; else the difference, which is no share of anything.
    """
    lost = base - tuned if higher_is_better else tuned - base
    if scale.width:
        return Size(lost / scale.width, True)
    nats = nats_lost(base, tuned, metric, higher_is_better)
    return Size(lost, False) if nats is None else Size(probability_lost(nats), True)


def nats_lost(base: float, tuned: float, metric: str, higher_is_better: bool) -> float | None:
    """How much more unlikely a token (byte) of given texts is to the tuned model, in nats.

    Args:
        base: The base's score, in the metric's own unit.
        tuned: The tuned model's.
        metric: Its name.
        higher_is_better: Where it is, the metric is another one of that name.

    Returns:
        None where the metric does not say that.
    """
    surprise = None if higher_is_better else surprises().get(metric)
    if surprise is Surprise.BITS:
        return (tuned - base) * math.log(2)
    is_ratio = surprise is Surprise.PERPLEXITY and base > 0 and tuned > 0
    return math.log(tuned / base) if is_ratio else None


def probability_lost(nats: float) -> float:
    """The share of a token's probability that it loses by getting `nats` more unlikely; of a gain, the mirror image."""
    return math.copysign(-math.expm1(-abs(nats)), nats)


def size_sql(lost: str, base: str, tuned: str) -> str:
    """`size_lost` as SQL over `metric`, `higher_is_better`, `low` and `high`: a struct of `value` and `is_share`.

    Args:
        lost: The expression of what was lost, in the metric's unit.
        base: That of the base's score.
        tuned: That of the tuned model's.
    """
    nats = f"CASE WHEN NOT higher_is_better THEN {nats_sql('metric', tuned)} - {nats_sql('metric', base)} END"
    probability = f"sign({nats}) * (1 - exp(-abs({nats})))"
    return (
        f"CASE WHEN high - low > 0 THEN {{'value': {lost} / (high - low), 'is_share': true}} "
        f"WHEN {nats} IS NOT NULL THEN {{'value': {probability}, 'is_share': true}} "
        f"ELSE {{'value': {lost}, 'is_share': false}} END"
    )


NO_HEADROOM = 0.05
"""A score that can fall by less than this share of its scale is taken not to be able to fall."""


def size_seen(own: Size, headroom: float | None, nats: float | None) -> Size:
    """What was lost of a skill, by how unlikely the right answers are where its own score cannot fall.

    Args:
        own: What was lost by the skill's own metric.
        headroom: What could be lost by it, as a share: from the base's score to chance, or to the floor; None if unknown.
        nats: How much more unlikely each byte of the right answers is; None where that was not kept.
    """
    if nats is None or headroom is None or headroom >= NO_HEADROOM:
        return own
    return Size(max(own.value, probability_lost(nats)), True)


def size_seen_sql(own: str) -> str:
    """`size_seen` as SQL over `base_value`, `chance`, the scale, `answer_bits` and `base_answer_bits`.

    Args:
        own: The expression of what `size_sql` gives.
    """
    floor = "coalesce(chance, CASE WHEN higher_is_better THEN low ELSE high END)"
    headroom = f"CASE WHEN higher_is_better THEN base_value - {floor} ELSE {floor} - base_value END / (high - low)"
    nats = "(answer_bits - base_answer_bits) * ln(2)"
    answers = f"sign({nats}) * (1 - exp(-abs({nats})))"
    return (
        f"CASE WHEN high - low > 0 AND {headroom} < {NO_HEADROOM} AND {answers} > {own}.value "
        f"THEN {{'value': {answers}, 'is_share': true}} ELSE {own} END"
    )


def nats_sql(metric: str, value: str) -> str:
    """How unlikely a token (byte) is, in nats, as SQL: null where the metric does not say that.

    Args:
        metric: The expression of the metric's name.
        value: That of its value.
    """
    kinds = {kind: ", ".join(f"'{m}'" for m, own in sorted(surprises().items()) if own is kind) for kind in Surprise}
    return (
        f"CASE WHEN {metric} IN ({kinds[Surprise.BITS]}) THEN {value} * ln(2) "
        f"WHEN {metric} IN ({kinds[Surprise.PERPLEXITY]}) AND {value} > 0 THEN ln({value}) END"
    )


class Sized(Protocol):
    """What was lost of a skill."""

    @property
    def metric(self) -> str:
        """The skill's metric."""

    @property
    def size(self) -> Size:
        """Mean over runs."""


AnySized = TypeVar("AnySized", bound=Sized)


def counted(lost: Sequence[AnySized]) -> list[AnySized]:
    """Of a pipeline's skills those whose losses have one unit: shares where there are any, else the first one's metric.

    Args:
        lost: In the order of the off-target suite.
    """
    shares = [item for item in lost if item.size.is_share]
    return shares or [item for item in lost if item.metric == lost[0].metric]


def worst(lost: Sequence[AnySized]) -> AnySized | None:
    """The skill that lost most, by means over runs: one run's chance does not choose it; None for no skill."""
    return max(counted(lost), key=lambda item: item.size.value, default=None)


def mean_size(sizes: Iterable[Size]) -> Size:
    """The mean over runs of what was lost of one skill; it is a share where every run's is one."""
    listed = list(sizes)
    return Size(math.fsum(s.value for s in listed) / len(listed), all(s.is_share for s in listed))
