"""How often `harness compare` is right, on simulated pairs of models whose truth is known.

    python benchmarks/compare.py [RUNS]

Each run is a base and a tuned model on eight skills: four of right and wrong without choices, two of four choices of which the
base knows some, one at chance, and one of bits per byte. Two models give the same answer to most items; the others are answered
anew, as likely to be right as before. Bits per byte move by heavy-tailed amounts (Student's t with 3 degrees of freedom), or by
skewed ones (exponential) in every other run. Then how often one skill that lost exactly what matters is called kept, and how often
one that lost nothing is called lost, before any correction for several.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from harness.analysis.retained import ALPHA, Status, noise_of
from harness.compare.answers import SHARE, Answer, Model, Skill
from harness.compare.judgement import compare
from harness.records.scale import Scale

SMALLEST = 0.05
LEVELS = {"a": 0.95, "b": 0.8, "c": 0.6, "d": 0.3, "e": 0.7, "f": 0.45, "chance": 0.25}
"""Accuracy of the base by skill; `e`, `f` and `chance` have four choices."""
CHOOSING = ("e", "f", "chance")
ANEW = 0.3
"""Share of items that the tuned model answers anew."""
RARE = 50
"""One in so many items has all of a rare loss."""
Numbers = np.ndarray[tuple[int], np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the tuned model lost."""

    name: str
    lost: Mapping[str, float] = field(default_factory=dict)
    """By skill in accuracy; of `text` and `chance` in bits per byte of right answers."""
    is_rare: bool = False
    """Whether one item in fifty has all of a loss in bits."""


def simulated(
    rng: np.random.Generator, items: int, truth: Truth, is_skewed: bool
) -> tuple[dict[str, Skill], dict[str, Skill]]:
    """A pair of models.

    Args:
        rng: Chance.
        items: Of each skill.
        truth: What is lost.
        is_skewed: Whether bits move by skewed amounts.
    """
    base, tuned = {}, {}
    for name, level in LEVELS.items():
        fall = 0.0 if name == "chance" else truth.lost.get(name, 0.0)
        able = rng.beta(2 * level, 2 * (1 - level), items)
        first = (rng.random(items) < able).astype(float)
        again = (rng.random(items) < able).astype(float)
        second = np.where(rng.random(items) < ANEW, again, first)
        # a right answer becomes wrong so often that accuracy falls by `fall` on average
        second = np.where(rng.random(items) < fall / level, 0.0, second)
        rise = _rise(rng, items, truth, name if name == "chance" else "")
        bits = _bits(rng, items, is_skewed)
        choices = 4 if name in CHOOSING else 0
        usual = {"metric": "acc", "higher_is_better": True, "scale": SHARE}
        base[name] = _skill(first, bits[0] if choices else None, choices, usual)
        tuned[name] = _skill(second, bits[1] + rise if choices else None, choices, usual)
    unlikely = {"metric": "bits_per_byte", "higher_is_better": False, "scale": Scale(low=0.0)}
    before, after = _bits(rng, items, is_skewed)
    after = after + _rise(rng, items, truth, "text")
    return base | {"text": _skill(before, before, 0, unlikely)}, tuned | {"text": _skill(after, after, 0, unlikely)}


def _bits(rng: np.random.Generator, items: int, is_skewed: bool) -> tuple[Numbers, Numbers]:
    before = rng.gamma(4, 0.45, items)
    return before, before + (rng.exponential(0.3, items) - 0.3 if is_skewed else 0.15 * rng.standard_t(3, items))


def _rise(rng: np.random.Generator, items: int, truth: Truth, name: str) -> Numbers:
    """By how many bits per byte right answers become less likely."""
    rise = truth.lost.get(name, 0.0)
    return RARE * rise * (rng.random(items) < 1 / RARE) if truth.is_rare else np.full(items, rise)


def _skill(values: Numbers, bits: Numbers | None, choices: int, usual: dict[str, object]) -> Skill:
    rest = {"prompt": "", "right": "", "given": None, "choices": choices}
    answers = tuple(
        Answer(item=str(place), value=float(value), bits=None if bits is None else float(bits[place]), **rest)  # type: ignore[arg-type]
        for place, value in enumerate(values)
    )
    return Skill(chance=None, value=float(values.mean()), answers=answers, **usual)  # type: ignore[arg-type]


def rates(items: int, truth: Truth, runs: int, seed: int = 0) -> Counter[Status]:
    """How many of so many runs end lost, kept, and without an answer.

    Args:
        items: Of each skill.
        truth: What is lost.
        runs: How many.
        seed: Of the simulation.
    """
    rng = np.random.default_rng(seed)
    found: Counter[Status] = Counter()
    for run in range(runs):
        base, tuned = simulated(rng, items, truth, is_skewed=run % 2 == 1)
        whole = compare(Model(name="base", skills=base), [Model(name="tuned", skills=tuned)], SMALLEST)
        found[whole.models[0].status] += 1
    return found


TWENTIETH = -float(np.log2(1 - SMALLEST))
"""Bits per byte that make right answers a twentieth less probable."""
TRUTHS = (
    Truth(name="equally able"),
    Truth(name="5 points less in one of eight skills", lost={"b": 0.05}),
    Truth(name="10 points less in one", lost={"b": 0.1}),
    Truth(name="20 points less in one", lost={"b": 0.2}),
    Truth(name="a byte 5% less probable in one", lost={"text": TWENTIETH}),
    Truth(name="the same, all of it in one item of fifty", lost={"text": TWENTIETH}, is_rare=True),
    Truth(name="at chance, .37 bits per byte more", lost={"chance": 0.37}),
)


def table(runs: int) -> Iterator[str]:
    """The rows of the table in benchmarks/README.md."""
    yield "| items of each skill | truth | runs | lost | kept | cannot tell |"
    yield "|---|---|---|---|---|---|"
    for items in (30, 200, 1319):
        for truth in TRUTHS:
            own = runs if items < 1000 else max(runs // 5, 1)
            found = rates(items, truth, own)
            shares = (f"{found[status] / own:.3f}" for status in (Status.LOST, Status.KEPT, Status.CANNOT_TELL))
            yield f"| {items:,} | {truth.name} | {own:,} | {' | '.join(shares)} |"


def one_skill(runs: int, seed: int = 1) -> Iterator[str]:
    """The rows of the second table in benchmarks/README.md.

    Args:
        runs: How many of each kind.
        seed: Of the simulation.
    """
    rng, margin = np.random.default_rng(seed), -float(np.log(1 - SMALLEST))
    kinds: Mapping[str, Callable[[int], Numbers]] = {
        "heavy tails": lambda n: 0.1 * rng.standard_t(3, n),
        "a tail of losses": lambda n: 0.2 * (rng.exponential(size=n) - 1),
        "a tail of gains": lambda n: 0.2 * (1 - rng.exponential(size=n)),
        "one item of fifty loses": lambda n: (
            0.1 * rng.standard_t(3, n) + margin * (RARE * (rng.random(n) < 1 / RARE) - 1)
        ),
        "one item of fifty gains": lambda n: (
            0.1 * rng.standard_t(3, n) - margin * (RARE * (rng.random(n) < 1 / RARE) - 1)
        ),
    }
    yield "| items | how items move | runs | exactly what matters, called kept | nothing, called lost |"
    yield "|---|---|---|---|---|"
    for items in (30, 200, 1319):
        for name, draw in kinds.items():
            counts = [0, 0]
            for _ in range(runs):
                moved = draw(items)
                mean = float(moved.mean())
                noise = noise_of([mean], moved)
                if noise is not None:
                    counts[0] += noise.bound(mean + margin, 1 - ALPHA) < margin
                    counts[1] += mean > 0 and 2 * noise.tail(mean) <= ALPHA
            yield f"| {items:,} | {name} | {runs:,} | {counts[0] / runs:.3f} | {counts[1] / runs:.3f} |"


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    for line in chain(table(count), [""], one_skill(20 * count)):
        print(line, flush=True)
