"""The verdict on finished models: per skill as `analysis.retained` has it, and one word for each model as a whole.

A model is *lost* where one of its skills is, *kept* where all are; else nothing can be said, and the verdict names how many items
would tell. All claims about all models and skills are corrected together, so that equally able models are called "lost" in at
most 5% of runs. That all are kept needs no correction: each of them must be shown (Berger 1982, Technometrics 24:295-300).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from harness.analysis.forgetting import nats_lost, size_lost
from harness.analysis.retained import ANSWERS, Flips, Judged, Measure, Status, flips, judge, noise_of
from harness.compare.answers import Answer, Model, Skill
from harness.errors import EXIT_CANNOT_TELL, EXIT_LOST, SpecError

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What two models made of the items that both were asked."""

    name: str
    base: Skill
    tuned: Skill

    @cached_property
    def items(self) -> tuple[tuple[Answer, Answer], ...]:
        """The base's answer and the tuned model's, in the base's order."""
        own = {answer.item: answer for answer in self.tuned.answers}
        return tuple((answer, own[answer.item]) for answer in self.base.answers if answer.item in own)

    @property
    def sides(self) -> tuple[Skill, Skill]:
        """Both with nothing but the items that they share."""
        base, tuned = zip(*self.items, strict=True)
        return _only(self.base, base), _only(self.tuned, tuned)

    @property
    def sign(self) -> int:
        """What turns a lower score into a loss."""
        return 1 if self.base.higher_is_better else -1

    def values(self) -> tuple[Numbers, Numbers]:
        """The metric of each shared item, for both."""
        base, tuned = (np.array([side.value for side in sides]) for sides in zip(*self.items, strict=True))
        return base, tuned

    def bits(self) -> tuple[Numbers, Numbers] | None:
        """Bits per byte of each right answer, for both; None where one of them only generated."""
        sides = [[side.bits for side in sides] for sides in zip(*self.items, strict=True)]
        if any(bits is None for side in sides for bits in side):
            return None
        base, tuned = (np.array(side, dtype=float) for side in sides)
        return (base, tuned) if np.isfinite(base).all() and np.isfinite(tuned).all() else None


def _only(skill: Skill, answers: Sequence[Answer]) -> Skill:
    """The skill on some of its items; a score that is no mean of items stays that of all of them."""
    value = float(np.mean([answer.value for answer in answers])) if skill.is_mean else skill.value
    return Skill(
        metric=skill.metric,
        higher_is_better=skill.higher_is_better,
        scale=skill.scale,
        chance=skill.chance,
        value=value,
        answers=tuple(answers),
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one skill."""

    pair: Pair
    judged: Judged

    @property
    def status(self) -> Status:
        """In a word."""
        return self.judged.status

    @property
    def flips(self) -> Flips | None:
        """Items that changed sides; None where they are not right or wrong."""
        base, tuned = self.pair.values()
        return flips(base, tuned[None, :])

    def worst(self, count: int) -> list[tuple[Answer, Answer]]:
        """The items that lost most, by the metric and then by how unlikely the right answer became."""

        def loss(item: tuple[Answer, Answer]) -> tuple[float, float]:
            base, tuned = item
            by_metric = self.pair.sign * (base.value - tuned.value)
            rise = 0.0 if base.bits is None or tuned.bits is None else tuned.bits - base.bits
            return (by_metric if math.isfinite(by_metric) else 0.0), rise

        return [item for item in sorted(self.pair.items, key=loss, reverse=True) if max(loss(item)) > 0][:count]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A model against its base."""

    name: str
    skills: tuple[Verdict, ...]

    def having(self, *statuses: Status) -> list[Verdict]:
        """Skills of these statuses."""
        return [skill for skill in self.skills if skill.status in statuses]

    @property
    def status(self) -> Status:
        """Lost, kept, or cannot tell."""
        if self.having(Status.LOST):
            return Status.LOST
        return Status.KEPT if len(self.having(Status.KEPT)) == len(self.skills) else Status.CANNOT_TELL

    @property
    def items_needed(self) -> int | None:
        """How many items of each skill would tell, where more would."""
        return max((skill.judged.items_needed or 0 for skill in self.skills), default=0) or None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models against their base."""

    base: str
    models: tuple[Compared, ...]
    smallest: float
    """The smallest loss that matters, as a share."""
    notes: tuple[str, ...] = ()
    """What was not compared."""

    @property
    def exit_code(self) -> int:
        """0 where all models kept all skills, 6 where one lost one, 7 where nothing can be said."""
        statuses = {model.status for model in self.models}
        return EXIT_LOST if Status.LOST in statuses else EXIT_CANNOT_TELL if Status.CANNOT_TELL in statuses else 0


def compare(base: Model, tuned: Sequence[Model], smallest: float) -> Comparison:
    """Judge models against their base, on the items that each shares with it.

    Args:
        base: What they are held against.
        tuned: At least one.
        smallest: The smallest loss that matters, as a share: .05 is 5 points, or a 20th of a byte's probability.

    Raises:
        SpecError: When they share no task, no item of a task, or were scored by different metrics.
    """
    notes: list[str] = []
    pairs = [_pairs(base, model, notes) for model in tuned]
    judged = iter(judge([_measures(pair) for own in pairs for pair in own], smallest, single_models=True))
    return Comparison(
        base=base.name,
        models=tuple(
            Compared(name=model.name, skills=tuple(Verdict(pair=pair, judged=next(judged)) for pair in own))
            for model, own in zip(tuned, pairs, strict=True)
        ),
        smallest=smallest,
        notes=tuple(dict.fromkeys(notes)),
    )


def _pairs(base: Model, tuned: Model, notes: list[str]) -> list[Pair]:
    shared = [task for task in base.skills if task in tuned.skills]
    if not shared:
        raise SpecError(
            f"models must be scored on the same tasks, but {base.name} was on {', '.join(base.skills)} and {tuned.name} on "
            f"{', '.join(tuned.skills)}: score both on the same"
        )
    for one in (base, tuned):
        if only := [task for task in one.skills if task not in shared]:
            notes.append(f"not compared, since only {one.name} was scored on it: {', '.join(only)}")
    return [_pair(task, base, tuned, notes) for task in shared]


def _pair(task: str, base: Model, tuned: Model, notes: list[str]) -> Pair:
    pair = Pair(name=task, base=base.skills[task], tuned=tuned.skills[task])
    if pair.base.metric != pair.tuned.metric:
        raise SpecError(
            f"task {task} must be scored by one metric, but {base.name} was by {pair.base.metric} and {tuned.name} by "
            f"{pair.tuned.metric}: score both by the same"
        )
    if not pair.items:
        raise SpecError(
            f"models must be scored on the same items, but {base.name} and {tuned.name} share none of {task}: score both on "
            "the same data"
        )
    for model, skill in ((base, pair.base), (tuned, pair.tuned)):
        if left := len(skill.answers) - len(pair.items):
            notes.append(f"{task}: {left:,} of {len(skill.answers):,} items that only {model.name} has were left out")
    return pair


def _measures(pair: Pair) -> list[Measure]:
    """The skill's own measure; then how unlikely the right answers are, where that is something else and known."""
    base, tuned = pair.sides
    nats = _in_nats(pair)
    if nats is not None:
        return [_measure(base.metric, nats, math.inf)]
    headroom = _headroom(base)
    if not (base.is_mean and tuned.is_mean):
        gap = "its metric is computed over all items at once"
        size = size_lost(base.value, tuned.value, base.metric, base.higher_is_better, base.span)
        own = Measure(name=base.metric, loss=size.value, noise=None, headroom=headroom, gap=gap)
    else:
        values = pair.values()
        losses = pair.sign * (values[0] - values[1]) / (base.span.width or 1.0)
        own = Measure(
            name=base.metric,
            loss=float(losses.mean()),
            noise=noise_of([float(losses.mean())], losses),
            headroom=headroom,
            gap=ONE_ITEM,
        )
    bits = pair.bits()
    return [own] if bits is None else [own, _measure(ANSWERS, (bits[1] - bits[0]) * math.log(2), math.inf)]


ONE_ITEM = "one item says nothing of others"


def _measure(name: str, nats: Numbers, headroom: float) -> Measure:
    """Of nats by which items got more unlikely."""
    noise = noise_of([float(nats.mean())], nats)
    return Measure(name=name, loss=float(nats.mean()), noise=noise, headroom=headroom, in_nats=True, gap=ONE_ITEM)


def _in_nats(pair: Pair) -> Numbers | None:
    """By how many nats each item got more unlikely; None where the metric does not say that, or not of every item."""
    if pair.base.span.width:
        return None
    metric, higher = pair.base.metric, pair.base.higher_is_better
    nats = [nats_lost(base.value, tuned.value, metric, higher) for base, tuned in pair.items]
    if any(own is None or not math.isfinite(own) for own in nats):
        return None
    return np.array(nats, dtype=float)


def _headroom(base: Skill) -> float | None:
    """What could be lost, as a share of the scale: down to chance, or to its floor."""
    floor = base.span.worst(base.higher_is_better) if base.guessing is None else base.guessing
    if floor is None:
        return None
    size = size_lost(base.value, floor, base.metric, base.higher_is_better, base.span)
    return size.value if size.is_share else None
