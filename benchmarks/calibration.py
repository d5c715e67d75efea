"""How often verdicts are wrong: simulated studies of equally good families, and of one that leads.

    python benchmarks/calibration.py            # at most ten minutes of one core
    python benchmarks/calibration.py 1000       # more studies for each line

A score is drawn from a family, the seed of a run, the item's difficulty, what the family makes of the item, and chance. A study
has three tasks and a base model. Beside the verdict stands the rule of before: paired t tests over seeds against the leader,
Holm-corrected within each task.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import ttest_rel

from harness.analysis.comparison import Question
from harness.analysis.statistics import Interval, holm
from harness.analysis.verdict import Verdict, Word, across, judge
from harness.records.scale import Scale

TASKS = 3
MATTERS = 0.02


@dataclass(frozen=True, kw_only=True)
class World:
    """How scores come about; shares of the scale."""

    families: int = 3
    seeds: int = 3
    items: int = 200
    lead: float = 0.0
    """Of the first family over all others and the base."""
    level: float = 0.5
    difficulty: float = 0.25
    """Standard deviation over items."""
    taste: float = 0.07
    """Standard deviation of what a family makes of an item."""
    seed_sd: float = 0.015
    shared: float = 0.0
    """Share of the variance over seeds that all families have in common."""
    failing: float = 0.0
    """Share of runs that leave no score."""
    scatter: float = 1.0
    """How many times as much over seeds the last family scatters."""
    picked_from: int = 1
    """Configurations of each family, of which a validation split of as many items picks one."""
    real: bool = False
    """Whether items have real values instead of right and wrong."""


def probabilities(world: World, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each task that of a right answer, shape (families + base, seeds, items), and what selection added to each."""
    for _ in range(TASKS):
        items = rng.normal(0, world.difficulty, world.items)
        taste = rng.normal(0, world.taste, (world.families + 1, 1, world.items))
        own = rng.normal(0, world.seed_sd, (world.families + 1, world.seeds, 1))
        own[-2] *= world.scatter
        common = rng.normal(0, world.seed_sd, (1, world.seeds, 1))
        own = own * (1 - world.shared) ** 0.5 + common * world.shared**0.5
        own[-1] = 0  # the base has no seed
        picked = _picked(world, rng)
        yield (_true(world) + picked)[:, None, None] + items + taste + own, picked


def _picked(world: World, rng: np.random.Generator) -> np.ndarray:
    """How much better than its mean the configuration is that validation picks for a family; truly, not by luck."""
    picked = np.zeros(world.families + 1)
    if world.picked_from > 1:
        quality = rng.normal(0, 0.02, (world.families, world.picked_from))
        luck = rng.normal(0, 0.5 / world.items**0.5, quality.shape)
        picked[:-1] = quality[np.arange(world.families), (quality + luck).argmax(axis=1)]
    return picked


def _true(world: World) -> np.ndarray:
    levels = np.full(world.families + 1, world.level)
    levels[0] += world.lead
    return levels


def study(world: World, rng: np.random.Generator) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Item scores of each task by family, and what selection added to each."""
    tasks = []
    for p, picked in probabilities(world, rng):
        clipped = np.clip(p, 0, 1)
        y = p + rng.normal(0, 0.2, p.shape) if world.real else (rng.random(p.shape) < clipped).astype(float)
        kept = rng.random(p.shape[:2]) >= world.failing
        kept[:, 0] = True
        tasks.append(({f"f{f}": y[f][kept[f]] for f in range(world.families)} | {"base": y[-1][:1]}, picked))
    return tasks


@dataclass
class Tally:
    """Counts over simulated studies."""

    studies: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def share(self, name: str, of: str = "") -> float:
        """Of studies, or of what else was counted."""
        return self.counts[name] / max(self.counts[of] if of else self.studies, 1)


def truth(world: World) -> np.ndarray:
    """Expected score of each family and the base: probabilities beyond 0 and 1 are cut off."""
    if world.real:
        return _true(world)
    spread = (world.difficulty**2 + world.taste**2 + world.seed_sd**2) ** 0.5
    z = np.random.default_rng(0).normal(0, spread, 400_000)
    return np.array([np.clip(level + z, 0, 1).mean() for level in _true(world)])


def simulate(world: World, studies: int, seed: int = 0) -> Tally:
    """Judge so many studies."""
    rng, tally, levels = np.random.default_rng(seed), Tally(), truth(world)
    names = [*(f"f{f}" for f in range(world.families)), "base"]
    scale = Scale() if world.real else Scale(low=0.0, high=1.0)
    for _ in range(studies):
        tasks = study(world, rng)
        true = [dict(zip(names, levels + picked, strict=True)) for _, picked in tasks]
        questions = [Question(scores=own, base="base", scale=scale, smallest=MATTERS) for own, _ in tasks]
        found = judge(questions)
        joint = across([replace(question, scale=Scale(low=0.0, high=1.0)) for question in questions])
        false = any(_false(verdict, own) for verdict, own in zip(found, true, strict=True))
        tally.studies += 1
        tally.counts["false"] += false
        wrong = joint is not None and joint.word is Word.BETTER and not _is_best(joint.leader, true)
        tally.counts["false with across"] += false or wrong
        tally.counts["across"] += joint is not None and joint.word is Word.BETTER and joint.leader == "f0"
        tally.counts["used"] += sum(verdict.use == "f0" for verdict in found)
        tally.counts["before"] += any(_before(own) for own, _ in tasks)
        for verdict, own in zip(found, true, strict=True):
            _count_coverage(tally, verdict, own)
    return tally


def _is_best(leader: str, true: list[dict[str, float]]) -> bool:
    """Whether a family has the highest mean over the tasks, alone."""
    means = {name: float(np.mean([own[name] for own in true])) for name in true[0]}
    return all(means[leader] > mean + 1e-12 for name, mean in means.items() if name != leader)


def _false(verdict: Verdict, true: Mapping[str, float]) -> bool:
    claims = [(verdict.leader or "", name, c.word) for name, c in verdict.against.items()]
    worse = any(word is Word.WORSE and true[a] <= true[b] for a, b, word in claims)
    same = any(word is Word.EQUIVALENT and abs(true[a] - true[b]) >= MATTERS for a, b, word in claims)
    base = true["base"]
    better = any(c.word is Word.BETTER and true[name] <= base for name, c in verdict.over_base.items())
    return worse or same or better


def _before(task: Mapping[str, np.ndarray]) -> bool:
    """Whether the rule of before tells any family from the leader."""
    means = {name: own.mean(axis=1) for name, own in task.items() if name != "base"}
    runs = min(map(len, means.values()))
    if runs < 2:
        return False
    leader = max(means, key=lambda name: means[name].mean())
    p = [ttest_rel(means[leader][:runs], own[:runs]).pvalue for name, own in means.items() if name != leader]
    return min(holm([1.0 if np.isnan(value) else float(value) for value in p])) < 0.05


def _count_coverage(tally: Tally, verdict: Verdict, true: Mapping[str, float]) -> None:
    leader = verdict.leader or ""
    shown: list[tuple[str, Interval, float]] = []
    for name, level in verdict.levels.items():
        shown.append(("leader's level" if name == leader else "level", level, true[name]))
    for name, gain in verdict.gains.items():
        shown.append(("leader's gain" if name == leader else "gain", gain, true[name] - true["base"]))
    for name, contrast in verdict.against.items():
        shown.append(("lead", contrast.difference, true[leader] - true[name]))
    for kind, interval, value in shown:
        if interval.low is not None and interval.high is not None:
            tally.counts[f"{kind} shown"] += 1
            tally.counts[kind] += interval.low <= value <= interval.high


KINDS = ("leader's level", "level", "leader's gain", "gain", "lead")


def line(name: str, tally: Tally) -> str:
    """A row of the table."""
    covered = " ".join(f"{tally.share(kind, f'{kind} shown'):6.3f}" for kind in KINDS)
    false = f"{tally.share('false'):6.3f} {tally.share('false with across'):7.3f} {tally.share('before'):7.3f}"
    return f"{name:44} {tally.studies:6d} {false}   {covered}   {tally.share('used') / TASKS:5.2f} {tally.share('across'):6.2f}"


def scenarios() -> Iterator[tuple[str, World]]:
    """Worlds that the procedure was not tuned on, at six families with three seeds and 200 items."""
    six = World(families=6)
    yield "seeds scatter three times as much", replace(six, seed_sd=0.045)
    yield "seeds hardly scatter", replace(six, seed_sd=0.003)
    yield "families differ much by item", replace(six, taste=0.2)
    yield "items are all alike", replace(six, difficulty=0.02, taste=0.01)
    yield "seeds shared by all families", replace(six, shared=0.8)
    yield "one run in four fails", replace(six, failing=0.25, seeds=4)
    yield "scores near 0", replace(six, level=0.04, difficulty=0.02, taste=0.01)
    yield "scores near 1, 30 items", replace(six, level=0.97, difficulty=0.02, taste=0.01, items=30)
    yield "one family scatters eight times as much", replace(six, scatter=8, items=1319)
    yield "each the best of 8 on validation", replace(six, picked_from=8)
    yield "real values", replace(six, real=True)
    yield "real values, 3 families, 5 seeds", World(real=True, seeds=5)
    yield "a lead of 5 points", World(lead=0.05)
    yield "a lead of 5 points, 5 seeds, 1,319 items", World(lead=0.05, seeds=5, items=1319)
    yield "a lead of 10 points, 6 families", replace(six, lead=0.1)


def main() -> None:
    """Print the grid and the scenarios."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    print(f"{'':44} {'':6} any false claim         95% intervals that hold the truth      found, of a lead")
    kinds = " ".join(f"{name:>6}" for name in ("lead.", "level", "l.gain", "gain", "lead"))
    print(f"{'world':44} studies task  +across before   {kinds}    task across")
    everything = Tally()
    grid = itertools.product((2, 3, 6, 12), (2, 3, 5, 10), (30, 200, 1319))
    for number, (families, seeds, items) in enumerate(grid):
        found = simulate(World(families=families, seeds=seeds, items=items), studies, number)
        print(line(f"{families} families, {seeds} seeds, {items:,} items", found), flush=True)
        everything.studies += found.studies
        everything.counts += found.counts
    print(line("all of these", everything))
    for number, (name, world) in enumerate(scenarios(), 1000):
        print(line(name, simulate(world, 3 * studies, number)), flush=True)
    error = (0.05 * 0.95 / studies) ** 0.5
    print(f"Monte Carlo standard error of a share of 0.05: {error:.3f} in the grid, {error / 3**0.5:.3f} below it")


if __name__ == "__main__":
    main()
