"""What could be run on a task: every pipeline that ran somewhere, and draws from the studies' families."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from harness.axes.contract import Situation
from harness.errors import SpecError
from harness.plugins import AXIS_FOLDER, load
from harness.recommend.features import Candidate, Facts, Observation
from harness.records.scale import Scale
from harness.records.trial import Stage, derive_seed
from harness.study.family import Family, resolved_families, stage_space
from harness.study.spec import StudySpec

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DRAWS = 64
"""Candidates drawn from each family's space."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked: a task, a base model, and what it may cost at most."""

    task: str
    task_facts: Facts
    base_model: str
    model_facts: Facts
    base_score: float | None = None
    """The base model's score on the task's validation split; without it only gains can be predicted."""
    higher_is_better: bool = True
    scale: Scale = field(default_factory=Scale)
    """Of the task's metric; without a declared best value nothing can be said of the gain."""
    metric: str = ""
    max_forgetting: float | None = None
    forgetting_is_share: bool | None = None
    """Whether forgetting is meant in shares (accuracies) or in losses; None where that is not known: shares."""
    max_seconds: float | None = None
    max_memory_bytes: float | None = None
    top: int = 3
    situation: Situation | None = None
    """Where it would be trained; choices that cannot work there are left out."""


def options(
    seen: Sequence[Observation], studies: Sequence[StudySpec], request: Request
) -> Iterator[tuple[str, Candidate]]:
    """Every pipeline that could be run on the request's task and model.

    Args:
        seen: Observations; each of their pipelines is a candidate.
        studies: `DRAWS` candidates are drawn from the space of each family that ran at full length.
        request: What is asked.

    Yields:
        Name of the family, and the candidate.
    """
    base = request.base_score if request.base_score is not None else usual_base(seen, request)
    here = Candidate(
        stages=(),
        steps=0,
        fidelity=1.0,
        model=request.model_facts,
        task=request.task_facts,
        base_score=base,
        higher_is_better=request.higher_is_better,
        scale=request.scale,
    )
    ran: dict[str, list[Observation]] = {}
    for observation in seen:
        # Stages hold mappings, which have no hash; their text is as good a key.
        ran.setdefault(repr((observation.candidate.stages, observation.candidate.steps)), []).append(observation)
    for trials in ran.values():
        yield trials[0].family, replace(here, stages=trials[0].candidate.stages, steps=trials[0].candidate.steps)
    for study in studies:
        for name, family in _families(study).items():
            # A family that never ran at full length has no usual number of steps to propose.
            steps = Counter(o.candidate.steps for o in seen if o.family == name and o.candidate.fidelity == 1)
            for stages in _draws(study, family) if steps else ():
                yield name, replace(here, stages=stages, steps=steps.most_common(1)[0][0])


def _draws(study: StudySpec, family: Family) -> Iterator[tuple[Stage, ...]]:
    # Seeded by name, so that the same database always gives the same advice.
    rng = random.Random(derive_seed("recommend", study.name, family.name))
    for _ in range(DRAWS if family.space else 1):
        values = {name: distribution.sample(rng) for name, distribution in family.space.items()}
        yield family.stages_at(values)


def _families(study: StudySpec) -> Mapping[str, Family]:
    """Its families; none where a plug-in or parameter is gone since."""
    try:
        return resolved_families(study)
    except SpecError:
        return {}


def read_studies(connection: DuckDBPyConnection) -> list[StudySpec]:
    """The studies in the database, by name."""
    specs = [row[0] for row in connection.execute("SELECT spec FROM studies ORDER BY study").fetchall()]
    studies = []
    for spec in specs:
        try:
            studies.append(StudySpec.model_validate_json(spec))
        except ValueError:  # written by another version; its trials still count
            continue
    return studies


def why_impossible(stages: Sequence[Stage], situation: Situation | None) -> str:
    """Why a pipeline cannot be run: a plug-in refuses the situation or is gone. Empty where it can.

    Args:
        stages: Of the pipeline, as recorded or drawn.
        situation: Where it would be trained; None asks only whether its plug-ins exist.
    """
    try:
        for stage in stages:
            for axis, folder in AXIS_FOLDER.items():
                kind = load(folder, getattr(stage, axis))
                if situation and (reason := kind().skip(situation.of(stage))):
                    return str(reason)
            space = stage_space({axis: getattr(stage, axis) for axis in AXIS_FOLDER})
            if unknown := sorted(set(stage.params) - set(space)):
                return f"{stage.method} has no parameter {unknown[0]}: it was run by something else than harness"
        return ""
    except SpecError as error:
        return str(error)


def usual_base(seen: Sequence[Observation], request: Request) -> float:
    """What to assume of an unknown base score: that of guessing, or else the median of tasks of the same direction and scale.

    Args:
        seen: Observations whose base scores count.
        request: Its task's chance level, direction and scale count.
    """
    scores = [
        o.candidate.base_score
        for o in seen
        if o.candidate.base_score is not None
        and (o.candidate.higher_is_better, o.candidate.scale) == (request.higher_is_better, request.scale)
    ]
    return float(request.task_facts.get("chance") or (median(scores) if scores else 0.0))
