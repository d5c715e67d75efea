"""Which trials each phase runs: the base models as they are, one cell for each family, and the finalists' fresh runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from harness.driver.experiment import Experiment
from harness.driver.known_records import KnownRecords
from harness.driver.sources import Proposal, SearchSource
from harness.files import now
from harness.plugins import load
from harness.records.study_trials import Member
from harness.records.trial import Evaluation, Pipeline, Stage, TrialConfig, derive_seed
from harness.search.cell import Cell
from harness.search.design import CellDesign
from harness.search.history import Best
from harness.study.family import full_steps

BASE_FAMILY = "base"
"""Family name of the base model itself."""


def base_proposals(experiment: Experiment) -> Iterator[Proposal]:
    """Every base model on every task and the off-target suite, on validation and on test."""
    spec = experiment.spec
    for model, task in experiment.arenas:
        for split, limit in (("validation", spec.search.limit), ("test", spec.confirm.limit)):
            evaluation = Evaluation(split=split, limit=limit, off_target=experiment.off_target_refs)
            pipeline = Pipeline(model.ref, (Stage(method="none"),))
            config = TrialConfig(pipeline=pipeline, task=task.ref, steps=0, evaluation=evaluation)
            member = Member(
                key=config.key,
                role="base",
                family=BASE_FAMILY,
                task=task.ref.name,
                base_model=model.ref.name,
                repetition=0,
                number=0,
                params={},
                reused=False,
                asked_at=now(),
            )
            yield Proposal(member, config)


def search_cells(experiment: Experiment, guess_s: Mapping[str, float]) -> list[Cell]:
    """One cell per base model, task and family.

    Args:
        experiment: What is searched.
        guess_s: Expected seconds of a full trial by family, for budgets in seconds; may be empty for others.
    """
    spec, evaluation = experiment.spec, search_evaluation(experiment)
    sampler = load("search/samplers", spec.search.sampler)()
    scheduler = load("search/schedulers", spec.search.scheduler)()
    return [
        Cell(
            CellDesign(
                search=spec.search,
                budget=spec.budget,
                seed=spec.seed,
                family=family,
                model=model.ref,
                task=task.ref,
                higher_is_better=task.higher_is_better,
                evaluation=evaluation,
                steps=partial(full_steps, spec.budget, family, task.rows),
                sampler=sampler,
                scheduler=scheduler,
                guess_s=guess_s.get(family.name, 0.0),
            )
        )
        for model, task in experiment.arenas
        for family in experiment.families.values()
    ]


def restored_cells(experiment: Experiment, members: Sequence[Member], known: KnownRecords) -> Sequence[Cell]:
    """The cells of a study with everything that is on record.

    Args:
        experiment: What was searched.
        members: The study's trials so far.
        known: Finds their records.
    """
    source = SearchSource(search_cells(experiment, {}))  # expected seconds matter to what is asked next only
    for proposal in source.restore(members):
        if (result := known.read(proposal.config.key)) is not None:
            source.tell(proposal, result)
    return source.cells


def search_evaluation(experiment: Experiment) -> Evaluation:
    """What search trials are scored on."""
    search = experiment.spec.search
    off_target = experiment.off_target_refs if search.off_target else ()
    return Evaluation(split="validation", limit=search.limit, off_target=off_target, fractions=search.fractions)


def confirm_evaluation(experiment: Experiment) -> Evaluation:
    """What finalists are scored on."""
    return Evaluation(split="test", limit=experiment.spec.confirm.limit, off_target=experiment.off_target_refs)


def confirm_proposals(experiment: Experiment, cells: Sequence[Cell]) -> Iterator[Proposal]:
    """The best families of each task and base model, each with the same fresh seeds, on the test split.

    Args:
        experiment: What is confirmed.
        cells: Its cells with their results.
    """
    confirm = experiment.spec.confirm
    for model, task in experiment.arenas:
        arena = [cell for cell in cells if (cell.design.model, cell.design.task) == (model.ref, task.ref)]
        for cell, best in finalists(arena, confirm.finalists):
            for repetition in range(confirm.seeds):
                yield _fresh_run(cell.design, best, repetition, confirm_evaluation(experiment))


def finalists(cells: Sequence[Cell], count: int) -> list[tuple[Cell, Best]]:
    """The best cells of one task and base model by validation score at full fidelity; equals in the study's order.

    Args:
        cells: All cells of the task and base model, with their results.
        count: Most finalists.
    """
    scored = [(cell, best) for cell in cells if (best := cell.best()) is not None]
    return sorted(scored, key=lambda pair: -pair[1].value)[:count]


def _fresh_run(design: CellDesign, best: Best, repetition: int, evaluation: Evaluation) -> Proposal:
    config = TrialConfig(
        pipeline=design.family.pipeline(design.model, best.params),
        task=design.task,
        steps=design.steps(best.params),
        seed=derive_seed(design.seed, "confirm", repetition),  # the family is not in it: all finalists share seeds
        evaluation=evaluation,
    )
    member = Member(
        key=config.key,
        role="confirm",
        family=design.family.name,
        task=design.task.name,
        base_model=design.model.name,
        repetition=repetition,
        number=best.number,
        params=best.params,
        reused=False,
        asked_at=now(),
    )
    return Proposal(member, config)
