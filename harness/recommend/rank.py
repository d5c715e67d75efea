"""Which pipeline for a task, from all that was measured so far; or what is missing to say so.

Candidates are the pipelines that ran and draws from the spaces of the studies' families. They are ranked by expected
gain; every recommendation comes with intervals, the trials nearest to it, and the backtest of whoever ranked it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from statistics import mean

import numpy as np

from harness.database.ingest import connect
from harness.errors import UsageError
from harness.plugins import AXIS_FOLDER
from harness.recommend.backtest import DEFAULTS, Backtest, backtest, merits, read_backtest
from harness.recommend.candidates import Request, options, read_studies, usual_base, why_impossible
from harness.recommend.conformal import COVERAGE
from harness.recommend.evidence import NotEnoughEvidence, lacking
from harness.recommend.features import Candidate, Observation, describe, observations, room, telling_params
from harness.recommend.predictor import Outlook
from harness.recommend.surrogates.base import Prediction
from harness.records.paths import Paths
from harness.records.trial import Stage

__all__ = ["Advice", "NotEnoughEvidence", "Recommendation", "Request", "backtest", "recommend"]

LIMITS = {"max_forgetting": "forgetting", "max_seconds": "seconds", "max_memory_bytes": "memory_bytes"}


@dataclass(frozen=True)
class Estimate:
    """An expected value and its interval."""

    mean: float
    low: float
    high: float
    coverage: float = COVERAGE


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A trial near a recommendation."""

    key: str
    task: str
    base_model: str
    score: float
    gain: float
    """Share of what was to be gained over the base."""
    distance: float
    """Root mean squared difference of the features, in standard deviations."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A pipeline, what is expected of it, and why."""

    rank: int
    family: str
    stages: tuple[Stage, ...]
    steps: int
    gain: Estimate
    """Over the base, towards better, in score units."""
    score: Estimate | None
    """None when the base score is unknown."""
    forgetting: Estimate | None
    """Worst over the off-target suites of the evidence, as shares of their metrics' scales or in units of a loss; None when
    none was measured in that kind of unit."""
    seconds: Estimate | None
    memory_bytes: Estimate | None
    evidence: tuple[Evidence, ...]
    why: str

    def expectations(self) -> list[str]:
        """One line per predicted quantity, its interval in brackets."""
        memory = self.memory_bytes and _scaled(self.memory_bytes, 1e-6)
        named = {"score": self.score, "gain": self.gain, "worst forgetting": self.forgetting}
        named |= {"seconds": self.seconds, "memory (MB)": memory}
        return [f"{name} {v.mean:.3g} [{v.low:.3g}, {v.high:.3g}]" for name, v in named.items() if v]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Ranked pipelines, at most one per family, best first."""

    task: str
    base_model: str
    recommendations: tuple[Recommendation, ...]
    backtest: Backtest
    notes: tuple[str, ...]

    def text(self) -> str:
        """The advice as lines for a terminal."""
        lines = [
            f"For {self.task} on {self.base_model} (nominal {COVERAGE:.0%} intervals; how often they held is said below):"
        ]
        for advised in self.recommendations:
            settings = " then ".join(_settings(stage) for stage in advised.stages)
            lines.append(f"{advised.rank}. {advised.family}: {settings}, {advised.steps} steps")
            lines += [f"   {line}" for line in advised.expectations()]
            near = ", ".join(f"{e.key[:8]} on {e.task} (score {e.score:.3g})" for e in advised.evidence)
            lines += [f"   why: {advised.why}", f"   nearest evidence: {near}"]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes), self.backtest.text()])


def recommend(paths: Paths, request: Request) -> Advice | NotEnoughEvidence:
    """Rank pipelines for a task that may be in no study, or say what evidence is missing.

    Args:
        paths: Of the results folder; its backtest is read, or run where the evidence changed.
        request: What is asked.

    Raises:
        StorageError: When there is no database.
        UsageError: When nothing is asked for.
    """
    if request.top < 1:
        raise UsageError(f"top must be at least 1, but got {request.top}: ask for one pipeline or more")
    with connect(paths) as connection:
        everything = observations(paths, connection)
        studies = read_studies(connection)
    # What has no gain over its base still teaches how pipelines compare; only what has one is evidence of a level.
    seen = [o for o in everything if o.gain is not None]
    if request.scale.best(request.higher_is_better) is None:
        return _refused(_unbounded(request), seen, "harness recommend once it is declared")
    missing = lacking(seen, request.task, request.task_facts, request.base_model, request.model_facts, studies)
    if missing:
        return missing
    tested = read_backtest(paths, everything)
    # Most suites are scored in percent, so that is what an unknown kind of forgetting is taken for.
    shares = request.forgetting_is_share is not False
    candidates = list(options(everything, studies, request))
    obstacles = [why_impossible(candidate.stages, request.situation) for _, candidate in candidates]
    offered = [pair for pair, obstacle in zip(candidates, obstacles, strict=True) if not obstacle]
    if not offered:
        reason = f"none of {len(candidates)} known pipelines can work on {request.base_model} here: {obstacles[0]}"
        return _refused(reason, seen, "harness recommend for another base model")
    outlook = Outlook(everything, tested.surrogate, shares=shares)
    ranked = _ranked(seen, offered, request, outlook)
    if not ranked:
        return _refused(_beyond(request, outlook), seen, "harness recommend with wider limits")
    notes = (*_doubts(ranked), *_notes(seen, request, tested), *_left_out(everything))
    return Advice(
        task=request.task,
        base_model=request.base_model,
        recommendations=tuple(ranked),
        backtest=tested,
        notes=notes,
    )


def _refused(reason: str, seen: Sequence[Observation], command: str) -> NotEnoughEvidence:
    return NotEnoughEvidence(reason=reason, trials=len(seen), needed=len(seen), study="", command=command)


def _unbounded(request: Request) -> str:
    """Why nothing can be said of a gain in this metric, and how to declare what is missing."""
    end = "highest" if request.higher_is_better else "lowest"
    return (
        f"the gain on {request.task} is no share of what there is to gain, because nobody declared the {end} value of its "
        f"metric {request.metric}: say metadata.metrics.{request.metric}.bounds in the task file, for example [0, 100]"
    )


def _left_out(everything: Sequence[Observation]) -> Iterator[str]:
    """The tasks whose trials have no gain, because their metric has no declared best value or their base no score."""
    unbounded = sorted({o.task for o in everything if o.gain is None and o.candidate.base_score is not None})
    if unbounded:
        yield (
            f"trials on {', '.join(unbounded)} teach only how pipelines compare, not what they gain: nobody declared the best "
            "value of their metric (metadata.metrics in the task file)"
        )
    baseless = sorted({o.task for o in everything if o.candidate.base_score is None})
    if baseless:
        yield f"trials on {', '.join(baseless)} teach only how pipelines compare, not what they gain: their base was never scored"


def _beyond(request: Request, outlook: Outlook) -> str:
    """Which limits nothing is expected to keep, or which cannot be judged."""
    given = [name for name in LIMITS if getattr(request, name) is not None]
    blind = [name for name in given if LIMITS[name] not in outlook.targets]
    if blind:
        return f"{' and '.join(blind)} cannot be judged, because no trial has measured that in the same kind of unit"
    limits = ", ".join(f"{name} = {getattr(request, name):g}" for name in given)
    return f"no pipeline is expected to stay within {limits}: allow more"


def _ranked(
    seen: Sequence[Observation], offered: Sequence[tuple[str, Candidate]], request: Request, outlook: Outlook
) -> list[Recommendation]:
    candidates = [candidate for _, candidate in offered]
    expected = outlook.predict(candidates)
    merit = merits(seen, candidates, list(map(float, expected["gain"].mean)))
    best: dict[str, Recommendation] = {}
    for index in sorted(range(len(offered)), key=lambda index: merit[index], reverse=True):
        family, candidate = offered[index]
        # One pipeline per family: three learning rates of one method are no choice.
        if family not in best and _within(expected, index, request) and len(best) < request.top:
            place = (len(best) + 1, family)
            best[family] = _recommendation(seen, request, outlook, candidate, _at(expected, index), place)
    return list(best.values())


def _within(expected: Mapping[str, Prediction], index: int, request: Request) -> bool:
    for limit, target in LIMITS.items():
        allowed = getattr(request, limit)
        if allowed is not None and (target not in expected or expected[target].mean[index] > allowed):
            return False
    return True


def _at(expected: Mapping[str, Prediction], index: int) -> dict[str, Estimate]:
    return {
        name: Estimate(float(p.mean[index]), float(p.low[index]), float(p.high[index])) for name, p in expected.items()
    }


def _recommendation(
    seen: Sequence[Observation],
    request: Request,
    outlook: Outlook,
    candidate: Candidate,
    expected: Mapping[str, Estimate],
    place: tuple[int, str],
) -> Recommendation:
    # Surrogates learn gain as a share of the room, which compares across tasks; readers want score units.
    gain = _scaled(expected["gain"], room(candidate.base_score or 0.0, request.higher_is_better, request.scale) or 0.0)
    score = None if request.base_score is None else _score(request.base_score, gain, request)
    row = outlook.encoder.transform([describe(candidate)])[0]
    distances = outlook.encoder.distances(outlook.rows, row)
    known = {o.key: o for o in seen}
    order = [int(i) for i in np.argsort(-distances, kind="stable") if outlook.seen[i].candidate.fidelity == 1]
    keys = [(outlook.seen[i].key, float(distances[i])) for i in order if outlook.seen[i].key in known]
    # Splits of one pipeline are one piece of evidence: the farthest come first, so the nearest of them stays.
    nearest = {known[key].pipeline: _evidence(known[key], distance) for key, distance in keys}
    near = tuple(sorted(nearest.values(), key=lambda evidence: (evidence.distance, evidence.key))[:3])
    rank, family = place
    return Recommendation(
        rank=rank,
        family=family,
        stages=candidate.stages,
        steps=candidate.steps,
        gain=gain,
        score=score,
        forgetting=expected.get("forgetting"),
        seconds=expected.get("seconds"),
        memory_bytes=expected.get("memory_bytes"),
        evidence=near,
        why=_why(seen, candidate, near, family),
    )


def _score(base: float, gain: Estimate, request: Request) -> Estimate:
    """Base plus gain, towards better; it stays on the metric's scale."""
    scale, sign = request.scale, 1 if request.higher_is_better else -1
    low, high = (-inf if scale.low is None else scale.low), (inf if scale.high is None else scale.high)
    ends = [min(max(base + sign * g, low), high) for g in (gain.mean, gain.low, gain.high)]
    return Estimate(ends[0], min(ends), max(ends))


def _evidence(seen: Observation, distance: float) -> Evidence:
    return Evidence(
        key=seen.key,
        task=seen.task,
        base_model=seen.base_model,
        score=seen.score,
        gain=seen.gain or 0.0,
        distance=distance,
    )


def _why(seen: Sequence[Observation], candidate: Candidate, near: Sequence[Evidence], family: str) -> str:
    ran = [o for o in seen if o.candidate.stages == candidate.stages]
    full = sum(o.candidate.fidelity == 1 for o in ran)
    alike = [o for o in seen if o.family == family and o.candidate.fidelity == 1]
    times = f"it ran {_counted(full, 'time')}" if full else "it ran only for a part of its budget"
    record = f"no trial of {family} ran its whole budget"
    if alike:
        tasks = len({o.task for o in alike})
        record = (
            f"{family} closed {mean(o.gain or 0.0 for o in alike):.0%} of the gap on average over {_counted(len(alike), 'trial')} "
            f"on {_counted(tasks, 'task')}"
        )
    origin = times if ran else "it was drawn from its family's space"
    return f"{origin}; {record}, and the nearest trial ({near[0].task}) closed {near[0].gain:.0%}"


def _doubts(ranked: Sequence[Recommendation]) -> Iterator[str]:
    """Whether tuning may be no use at all."""
    if max(advised.gain.mean for advised in ranked) <= 0:
        yield (
            "nothing is expected to beat the base model: keep it, or search further (more tasks like it, more steps, "
            "other families)"
        )
        return
    unsure = [advised.family for advised in ranked if advised.gain.low <= 0]
    if unsure:
        yield f"the interval of the gain reaches zero for {', '.join(unsure)}: it may not beat the base model at all"


def _notes(seen: Sequence[Observation], request: Request, tested: Backtest) -> Iterator[str]:
    if not tested.beats_baselines:
        yield (
            "no learned surrogate beats the simple rules in the backtest, so this is not fitted to the task: choices are "
            "ranked by what they gained on average, pipelines with equal choices by nearness to the literature defaults; "
            "more tasks would help"
        )
    if tested.defaults_win:
        yield (
            f"in the backtest {DEFAULTS.replace('_', ' ')} (the choices tried most often, nearest to their defaults) lost "
            "least: try those first"
        )
    if request.base_score is None:
        yield (
            f"the base model was never scored on {request.task}, so gains assume a base score of "
            f"{usual_base(seen, request):.3g} and no score is predicted: 'harness base' on a study with the task tells it"
        )
    if not tested.enough_tasks:
        yield "with fewer than four tasks the intervals cannot be calibrated for a new one; see their measured coverage"


def _scaled(estimate: Estimate, by: float) -> Estimate:
    return Estimate(estimate.mean * by, estimate.low * by, estimate.high * by, estimate.coverage)


def _settings(stage: Stage) -> str:
    shown = ", ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in telling_params(stage).items())
    names = "+".join(str(getattr(stage, axis)) for axis in AXIS_FOLDER)
    return f"{names} ({shown})" if shown else names


def _counted(number: int, noun: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
