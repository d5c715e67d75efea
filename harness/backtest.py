"""Is the advice any good? The recommender's leave-one-task-out test.

Each task is left out in turn, a pipeline is chosen for it from what the others taught, and the regret is measured among
the pipelines that were really run on it, beside what simpler choices would have cost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.conformal import COVERAGE, guaranteed
from harness.features import Observation, default_distance, observations
from harness.layout import Layout, write_atomically
from harness.metrics import normalized_regret, simple_regret
from harness.outlook import Outlook, covered
from harness.plugins import load, names
from harness.records import fingerprint, to_json
from harness.store import connect

DEFAULTS = "literature_defaults"
"""Chooser: of the choices tried most often, the trial nearest to the declared defaults."""


@dataclass(frozen=True)
class Coverage:
    """How often an interval held what happened, on tasks that it had not seen."""

    nominal: float
    measured: float
    n: int


@dataclass(frozen=True)
class LeftOut:
    """What each chooser would have cost on a task that it had not seen."""

    task: str
    base_model: str
    pipelines: int
    """To choose among."""
    best: float
    """Best known score among them."""
    base_score: float | None
    regret: Mapping[str, float]
    """Best minus chosen by chooser, in score units towards better; the mean over ties. All alike means random choice."""
    normalized: Mapping[str, float | None]
    """Regret as share of what was to be gained over the base."""


@dataclass(frozen=True)
class Backtest:
    """The recommender's leave-one-task-out test."""

    surrogate: str
    """What recommendations rest on: the learned surrogate with the least regret, or else a baseline."""
    beats_baselines: bool
    tasks: tuple[LeftOut, ...]
    regret: Mapping[str, float]
    """Mean simple regret by chooser."""
    normalized_regret: Mapping[str, float]
    coverage: Mapping[str, Coverage]
    """By target (gain, forgetting, seconds, memory_bytes), of the surrogate used."""
    guaranteed: bool
    """Whether there are enough tasks for the nominal coverage to be promised for a new one."""
    trials: int
    evidence: str
    """Fingerprint of the trials it rests on."""

    def text(self) -> str:
        """The result in a few lines."""
        if not self.tasks:
            return f"Backtest: needs at least two tasks with two pipelines each; there are {self.trials} trials with a score."
        others = ", ".join(f"{n} {v:.3f}" for n, v in sorted(self.regret.items(), key=lambda p: p[1]))
        verdict = "beats every baseline" if self.beats_baselines else "no learned surrogate beats the baselines"
        lines = [
            f"Backtest over {len(self.tasks)} left-out tasks ({self.trials} trials): {verdict}; in use: {self.surrogate}."
        ]
        lines.append(f"  mean regret in score units: {others}")
        held = ", ".join(f"{n} {c.measured:.0%} of {c.n}" for n, c in self.coverage.items())
        lines.append(f"  {COVERAGE:.0%} intervals held for: {held}")
        if not self.guaranteed:
            lines.append("  Fewer than four tasks: no interval for a new task can be guaranteed to hold that often.")
        return "\n".join(lines)


def backtest_path(layout: Layout) -> Path:
    """Where the result is kept."""
    return layout.results / "backtest.json"


def backtest(layout: Layout) -> Backtest:
    """Run the test on the database's evidence and keep the result in `results/backtest.json`.

    Raises:
        StorageError: When there is no database.
    """
    with connect(layout) as connection:
        result = evaluate([o for o in observations(layout, connection) if o.gain is not None])
    write_atomically(backtest_path(layout), json.dumps(to_json(result), indent=1) + "\n")
    return result


def evidence_fingerprint(seen: Sequence[Observation]) -> str:
    """Changes when the evidence does."""
    return fingerprint([[o.key, o.score, o.forgetting, o.seconds] for o in seen])


def evaluate(seen: Sequence[Observation]) -> Backtest:
    """The test on evidence (observations with a gain)."""
    tasks = sorted({observation.task for observation in seen})
    results: list[LeftOut] = []
    hits: dict[str, dict[str, list[bool]]] = {name: {} for name in names("surrogates")}
    for task in tasks if len(tasks) > 1 else ():
        train = [observation for observation in seen if observation.task != task]
        test = [observation for observation in seen if observation.task == task]
        gains: dict[str, Mapping[str, float]] = {}
        for name in hits:
            predicted = Outlook(train, name).predict([observation.candidate for observation in test])
            for target, held in covered(predicted, test).items():
                hits[name].setdefault(target, []).extend(held)
            gains[name] = dict(zip((o.key for o in test), map(float, predicted["gain"].mean), strict=True))
        results += _left_out(train, test, gains)
    return _summary(seen, results, hits)


def _left_out(
    train: Sequence[Observation], test: Sequence[Observation], gains: Mapping[str, Mapping[str, float]]
) -> list[LeftOut]:
    found = []
    for model in sorted({observation.base_model for observation in test}):
        cell = _comparable([observation for observation in test if observation.base_model == model])
        if len({observation.pipeline for observation in cell}) < 2:
            continue
        sign = 1 if cell[0].candidate.higher_is_better else -1
        scores = {
            p: sign * float(np.mean([o.score for o in cell if o.pipeline == p])) for p in {o.pipeline for o in cell}
        }
        best, base = max(scores.values()), cell[0].candidate.base_score
        chosen = {name: {o.pipeline: by_key[o.key] for o in cell} for name, by_key in gains.items()}
        chosen[DEFAULTS] = _nearness_to_defaults(train, cell)
        regret = {name: simple_regret(best, _expected(scores, values)) for name, values in chosen.items()}
        share = {
            name: None if base is None else normalized_regret(best, best - value, sign * base)
            for name, value in regret.items()
        }
        found.append(LeftOut(cell[0].task, model, len(scores), sign * best, base, regret, share))
    return found


def _comparable(seen: Sequence[Observation]) -> list[Observation]:
    """Of full-length trials, the largest part that may be ranked against each other."""
    full = [observation for observation in seen if observation.candidate.fidelity == 1]
    kinds = Counter((o.comparability, o.split) for o in {o.pipeline + o.split: o for o in full}.values())
    return [o for o in full if (o.comparability, o.split) == kinds.most_common(1)[0][0]]


def _expected(scores: Mapping[str, float], values: Mapping[str, float]) -> float:
    """Score of the pipeline with the highest value; the mean over ties, up to rounding."""
    top = max(values.values())
    return float(np.mean([scores[pipeline] for pipeline, value in values.items() if value >= top - 1e-9]))


def _nearness_to_defaults(train: Sequence[Observation], cell: Sequence[Observation]) -> dict[str, float]:
    tried = Counter(choices(observation) for observation in train)
    present = {choices(observation) for observation in cell}
    common = min(present, key=lambda choice: (-tried[choice], choice))
    return {o.pipeline: -default_distance(o.candidate.stages) if choices(o) == common else -np.inf for o in cell}


def choices(observation: Observation) -> tuple[tuple[str, ...], ...]:
    """Method, objective, retention and curation of every stage."""
    return tuple((s.method, s.objective, s.retention, s.curation) for s in observation.candidate.stages)


def _summary(
    seen: Sequence[Observation], results: Sequence[LeftOut], hits: Mapping[str, Mapping[str, list[bool]]]
) -> Backtest:
    choosers = [*hits, DEFAULTS]
    regret = {name: float(np.mean([r.regret[name] for r in results])) for name in choosers if results}
    shares = {name: [share for r in results if (share := r.normalized[name]) is not None] for name in choosers}
    normalized = {name: float(np.mean(values)) for name, values in shares.items() if values}
    judged = normalized or regret
    learned = [name for name in hits if not load("surrogates", name).baseline]
    baselines = [name for name in hits if name not in learned]

    def least(among: Sequence[str]) -> str:
        return min(among, key=lambda name: (judged.get(name, 0.0), name))

    beats = bool(results) and judged[least(learned)] < judged[least(baselines)]
    used = least(learned if beats else baselines)
    coverage = {
        target: Coverage(COVERAGE, float(np.mean(held)), len(held)) for target, held in hits[used].items() if held
    }
    tasks = len({observation.task for observation in seen})
    return Backtest(
        used,
        beats,
        tuple(results),
        regret,
        normalized,
        coverage,
        guaranteed(tasks),
        len(seen),
        evidence_fingerprint(seen),
    )


def read_backtest(layout: Layout, seen: Sequence[Observation]) -> Backtest:
    """The kept result where it rests on this evidence; else a new one, kept."""
    try:
        data = json.loads(backtest_path(layout).read_text())
        if data["evidence"] == evidence_fingerprint(seen):
            kept = {target: Coverage(**value) for target, value in data["coverage"].items()}
            return Backtest(**data | {"tasks": tuple(LeftOut(**task) for task in data["tasks"]), "coverage": kept})
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, damaged or of another version: it is derived, so it is made again
    return backtest(layout)
