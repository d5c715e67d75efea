"""Is the advice any good? The recommender's leave-one-task-out test.

Each task is left out in turn, a pipeline is chosen for it from what the others taught, and the regret is measured among
the pipelines that were really run on it, beside what simpler choices would have cost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from harness.analysis.regret import normalized_regret, simple_regret
from harness.database.ingest import connect
from harness.files import parse_json, write_atomically
from harness.plugins import load, load_all
from harness.recommend.conformal import COVERAGE, enough_tasks
from harness.recommend.features import Candidate, Observation, default_distance, observations
from harness.recommend.predictor import Outlook, covered
from harness.records.codec import Record, decode, fingerprint, to_json
from harness.records.paths import Paths

DEFAULTS = "literature_defaults"
"""Chooser: of the choices tried most often, the trial nearest to the declared defaults."""
RANDOM = "random_choice"
"""Chooser: any pipeline; the mean over all."""


@dataclass(frozen=True)
class Coverage(Record):
    """How often an interval held what happened, on tasks that it had not seen."""

    nominal: float
    measured: float
    n: int


@dataclass(frozen=True, kw_only=True)
class LeftOut(Record):
    """What each chooser would have cost on a task that it had not seen."""

    task: str
    base_model: str
    pipelines: int
    """To choose among."""
    best: float
    """Best known score among them."""
    base_score: float | None
    metric: str
    """What it is scored by."""
    regret: Mapping[str, float]
    """Best minus chosen by chooser, in score units towards better; the mean over what `merits` leaves tied."""
    normalized: Mapping[str, float | None]
    """Regret as share of what was to be gained over the base."""


@dataclass(frozen=True, kw_only=True)
class Backtest(Record):
    """The recommender's leave-one-task-out test."""

    surrogate: str
    """What recommendations rest on: the learned surrogate with the least regret, or else a baseline."""
    beats_baselines: bool
    """Whether it chose better than every simple rule: baselines, the literature defaults, and chance."""
    tasks: tuple[LeftOut, ...]
    regret: Mapping[str, float]
    """Mean simple regret by chooser; empty where tasks differ in their metric, because units do not add up."""
    normalized_regret: Mapping[str, float]
    """Mean by chooser, as share of what was to be gained; the verdict rests on it."""
    coverage: Mapping[str, Coverage]
    """By target (gain, forgetting, seconds, memory_bytes), of the surrogate used."""
    enough_tasks: bool
    """Whether there are enough tasks to calibrate intervals of the nominal coverage."""
    trials: int
    evidence: str
    """Fingerprint of the trials it rests on."""

    @property
    def defaults_win(self) -> bool:
        """Whether the literature defaults lost less than everything that was learned."""
        judged = self.normalized_regret or self.regret
        return not self.beats_baselines and bool(judged) and min(judged, key=lambda n: (judged[n], n)) == DEFAULTS

    def text(self) -> str:
        """The result in a few lines."""
        if not self.tasks:
            return f"Backtest: needs at least two tasks with two pipelines each; there are {self.trials} trials with a score."
        verdict = "beats every simple rule" if self.beats_baselines else "no learned surrogate beats the simple rules"
        if self.defaults_win:
            verdict += f" ({DEFAULTS} lost least)"
        lines = [
            f"Backtest over {len(self.tasks)} left-out tasks ({self.trials} trials): {verdict}; in use: {self.surrogate}."
        ]
        shares = sorted(self.normalized_regret.items(), key=lambda p: (p[1], p[0]))
        if shares:
            lines.append(
                "  mean regret as share of what was to be gained: " + ", ".join(f"{n} {v:.1%}" for n, v in shares)
            )
        elif self.regret:
            means = sorted(self.regret.items(), key=lambda p: (p[1], p[0]))
            lines.append("  mean regret in score units: " + ", ".join(f"{n} {v:.3f}" for n, v in means))
        held = ", ".join(f"{n} {c.measured:.0%} of {c.n}" for n, c in self.coverage.items())
        lines.append(f"  intervals meant to hold {COVERAGE:.0%} of the time held for: {held or 'nothing measured'}")
        if not self.enough_tasks:
            lines.append("  Fewer than four tasks: too few to calibrate intervals for a new one.")
        return "\n".join(lines)


def backtest(paths: Paths) -> Backtest:
    """Run the test on the database's evidence and keep the result.

    Raises:
        StorageError: When there is no database.
    """
    with connect(paths) as connection:
        result = evaluate(observations(paths, connection))
    write_atomically(paths.backtest, json.dumps(to_json(result), indent=1) + "\n")
    return result


def evidence_fingerprint(seen: Sequence[Observation]) -> str:
    """A hash that changes when the evidence does."""
    return fingerprint([[o.key, o.score, o.forgetting, o.seconds] for o in seen])


def evaluate(seen: Sequence[Observation]) -> Backtest:
    """The test itself.

    Args:
        seen: The evidence. What has no gain over its base teaches, but no choice is judged by it.
    """
    full = [o for o in seen if o.candidate.fidelity == 1 and o.gain is not None]
    tasks = sorted({observation.task for observation in full})
    results: list[LeftOut] = []
    left_out = [
        ([o for o in seen if o.task != task], [o for o in full if o.task == task])
        for task in (tasks if len(tasks) > 1 else ())
    ]
    for train, test in left_out:
        # Only full runs are chosen among, but rungs of other tasks may teach.
        gains: dict[str, Mapping[str, float]] = {}
        for name in load_all("recommend/surrogates"):
            outlook = Outlook(train, name, ["gain"], calibrated=False)
            predicted = outlook.predict([observation.candidate for observation in test])
            gains[name] = dict(zip((o.key for o in test), map(float, predicted["gain"].mean), strict=True))
        results += _left_out(train, test, gains)
    return _summary(seen, results, partial(_held, left_out))


def _held(
    left_out: Sequence[tuple[Sequence[Observation], Sequence[Observation]]], surrogate: str
) -> dict[str, list[bool]]:
    """Whether what came of the tasks left out lay in a surrogate's intervals, by target."""
    hits: dict[str, list[bool]] = {}
    for train, test in left_out:
        predicted = Outlook(train, surrogate).predict([observation.candidate for observation in test])
        for target, held in covered(predicted, test).items():
            hits.setdefault(target, []).extend(held)
    return hits


def _left_out(
    train: Sequence[Observation], test: Sequence[Observation], gains: Mapping[str, Mapping[str, float]]
) -> list[LeftOut]:
    results = []
    for model in sorted({observation.base_model for observation in test}):
        cell = _comparable([observation for observation in test if observation.base_model == model])
        if len({observation.pipeline for observation in cell}) < 2:
            continue
        sign = 1 if cell[0].candidate.higher_is_better else -1
        scores = {
            p: sign * float(np.mean([o.score for o in cell if o.pipeline == p])) for p in {o.pipeline for o in cell}
        }
        best, base = max(scores.values()), cell[0].candidate.base_score
        chosen = {name: _ranked(train, cell, by_key) for name, by_key in gains.items()}
        chosen[DEFAULTS] = _nearness_to_defaults(train, cell)
        chosen[RANDOM] = dict.fromkeys(scores, (0.0,))
        regret = {name: simple_regret(best, _expected(scores, values)) for name, values in chosen.items()}
        # Signs turn losses round, so that higher is better on both sides of the regret.
        share = {
            name: None if base is None else normalized_regret(best, best - value, sign * base)
            for name, value in regret.items()
        }
        results.append(
            LeftOut(
                task=cell[0].task,
                base_model=model,
                pipelines=len(scores),
                best=sign * best,
                base_score=base,
                metric=cell[0].metric,
                regret=regret,
                normalized=share,
            )
        )
    return results


def _comparable(seen: Sequence[Observation]) -> list[Observation]:
    """The largest part that may be ranked against each other."""
    kinds = Counter((o.comparability, o.split) for o in {o.pipeline + o.split: o for o in seen}.values())
    return [o for o in seen if (o.comparability, o.split) == kinds.most_common(1)[0][0]]


def _expected(scores: Mapping[str, float], values: Mapping[str, tuple[float, ...]]) -> float:
    """Score of the pipeline with the highest value; the mean over ties."""
    top = max(values.values())
    return float(np.mean([scores[pipeline] for pipeline, value in values.items() if value == top]))


def _ranked(
    train: Sequence[Observation], cell: Sequence[Observation], gains: Mapping[str, float]
) -> dict[str, tuple[float, ...]]:
    by = merits(train, [o.candidate for o in cell], [gains[o.key] for o in cell])
    return {o.pipeline: merit for o, merit in zip(cell, by, strict=True)}


def _nearness_to_defaults(train: Sequence[Observation], cell: Sequence[Observation]) -> dict[str, tuple[float, ...]]:
    tried = Counter(choices(observation.candidate) for observation in train)
    present = {choices(observation.candidate) for observation in cell}
    common = min(present, key=lambda choice: (-tried[choice], choice))
    return {o.pipeline: (_nearness(o.candidate) if choices(o.candidate) == common else -np.inf,) for o in cell}


def _nearness(candidate: Candidate) -> float:
    # Rounded, so that sums in another order still tie.
    return -round(default_distance(candidate.stages), 9)


def merits(
    train: Sequence[Observation], candidates: Sequence[Candidate], gains: Sequence[float]
) -> list[tuple[float, float, float]]:
    """What candidates are ranked by, in recommendations and in their test.

    A baseline expects the same gain of many candidates, so ties are common: the gain of the same choices elsewhere
    breaks them, then nearness to the literature defaults.

    Args:
        train: Observations that the ranking may use.
        candidates: To be ranked.
        gains: Expected gain of each candidate, as share of the room.

    Returns:
        Of each candidate: expected gain; mean gain of full-length trials with the same choices, every task weighing
        the same; nearness to the defaults, at most 0. More is better.
    """
    by_task: dict[tuple[tuple[str, ...], ...], dict[str, list[float]]] = {}
    for o in train:
        if o.candidate.fidelity == 1 and o.gain is not None:
            by_task.setdefault(choices(o.candidate), {}).setdefault(o.task, []).append(o.gain)
    like = {choice: float(np.mean([np.mean(each) for each in tasks.values()])) for choice, tasks in by_task.items()}
    return [
        (round(float(gain), 9), round(like.get(choices(candidate), -np.inf), 9), _nearness(candidate))
        for candidate, gain in zip(candidates, gains, strict=True)
    ]


def choices(candidate: Candidate) -> tuple[tuple[str, ...], ...]:
    """Method, objective, retention and curation of every stage."""
    return tuple((s.method, s.objective, s.retention, s.curation) for s in candidate.stages)


def _summary(
    seen: Sequence[Observation],
    results: Sequence[LeftOut],
    held_by: Callable[[str], Mapping[str, Sequence[bool]]],
) -> Backtest:
    """The verdict, and how often the intervals of the surrogate that it names held: only these are shown."""
    surrogates = list(load_all("recommend/surrogates"))
    choosers = [*surrogates, DEFAULTS, RANDOM]
    # Points of accuracy and nats do not add up.
    one_unit = len({r.metric for r in results}) == 1
    regret = {name: float(np.mean([r.regret[name] for r in results])) for name in choosers if one_unit}
    shares = {name: [share for r in results if (share := r.normalized[name]) is not None] for name in choosers}
    normalized = {name: float(np.mean(values)) for name, values in shares.items() if values}
    judged = normalized or regret
    learned = [name for name in surrogates if not load("recommend/surrogates", name).baseline]
    baselines = [name for name in surrogates if name not in learned]

    def least(among: Sequence[str]) -> str:
        return min(among, key=lambda name: (judged.get(name, 0.0), name))

    # A tie goes to the simple rules: what is learned must be worth its keep.
    beats = bool(judged) and judged[least(learned)] < judged[least([*baselines, DEFAULTS, RANDOM])]
    used = least(learned if beats else baselines)
    coverage = {
        target: Coverage(COVERAGE, float(np.mean(held)), len(held)) for target, held in held_by(used).items() if held
    }
    return Backtest(
        surrogate=used,
        beats_baselines=beats,
        tasks=tuple(results),
        regret=regret,
        normalized_regret=normalized,
        coverage=coverage,
        enough_tasks=enough_tasks(len({observation.task for observation in seen})),
        trials=len(seen),
        evidence=evidence_fingerprint(seen),
    )


def read_backtest(paths: Paths, seen: Sequence[Observation]) -> Backtest:
    """The result on file where it rests on this evidence; else a new one, which replaces it.

    Args:
        paths: Of the results folder.
        seen: The evidence that a recommendation would rest on.
    """
    try:
        data = parse_json(paths.backtest.read_text())
        if data["evidence"] == evidence_fingerprint(seen):
            return decode(Backtest, data)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, damaged or of another version: it is derived, so it is made again
    return backtest(paths)
