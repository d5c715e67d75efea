"""What each step wants to have run: the base's scores, the cells' trials, and the finalists' fresh runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from harness.driver.loop import Proposal, Source
from harness.driver.resolve import ModelInfo, Setting, TaskInfo, steps_of
from harness.errors import SpecError
from harness.files import now
from harness.plugins import load
from harness.records.lost_work import Stop
from harness.records.paths import Paths
from harness.records.results import find_result
from harness.records.study_trials import Member, Role
from harness.records.trial import Evaluation, Pipeline, Stage, TrialConfig, TrialResult, derive_seed
from harness.search.cell import Best, Cell, CellDesign, Job
from harness.search.early_stopping import chance
from harness.study.spec import StudySpec
from harness.trial.packs import alike

BASE_FAMILY = "base"
"""Family name of the base model itself."""


class FixedSource(Source):
    """A list of trials that is known in advance."""

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        self.proposals, self._asked = proposals, 0
        self._results: dict[str, TrialResult] = {}
        self._kinds = [alike(proposal.config) for proposal in proposals]

    def next(self, limit: int, waiting: bool = False) -> list[Proposal]:
        """The next of the list, as far as they are alike."""
        start = end = self._asked
        while end < min(start + limit, len(self.proposals)) and self._kinds[end] == self._kinds[start]:
            end += 1
        self._asked = end
        return list(self.proposals[start:end])

    def tell(self, proposal: Proposal, result: TrialResult) -> None:
        """Keep the result."""
        self._results[proposal.member.key] = result

    @property
    def planned(self) -> int:
        """Length of the list."""
        return len(self.proposals)

    @property
    def left(self) -> int:
        """What was not asked for yet."""
        return len(self.proposals) - self._asked

    def without_score(self) -> tuple[str, ...]:
        """Groups of trials (family, task, base model, split) of which none has a score."""
        scored: dict[str, bool] = {}
        for proposal in self.proposals:
            member, result = proposal.member, self._results.get(proposal.member.key)
            group = f"{member.base_model}/{member.task}/{member.family} ({proposal.config.evaluation.split})"
            scored[group] = scored.get(group, False) or (result is not None and result.target is not None)
        return tuple(group for group, any_score in scored.items() if not any_score)


class SearchSource(Source):
    """All cells of a study.

    Base models take turns as a whole, since a worker keeps one of them warm; of one base model's cells the one that
    used the least of its budget asks next, so that they advance together. A cell that can no longer reach the best of
    its task and base model gives up, where the study allows it.
    """

    def __init__(
        self, cells: Sequence[Cell], stops: Sequence[Stop] = (), stopped: Callable[[Stop], None] = lambda stop: None
    ) -> None:
        """Take the cells, those that gave up under an earlier driver, and who is told when another one does."""
        self.cells, self._stopped = cells, stopped
        self._finished: set[int] = set()
        reasons = {(stop.base_model, stop.task, stop.family): stop.reason for stop in stops}
        for cell in cells:
            design = cell.design
            cell.gave_up = reasons.get((design.model.name, design.task.name, design.family.name))

    def restore(self, members: Sequence[Member]) -> list[Proposal]:
        """What earlier drivers asked for, in the same order.

        Raises:
            SpecError: When a task, a model or a default has changed since.
        """
        by_label = {cell.design.label: cell for cell in self.cells}
        proposals = []
        for member in members:
            if member.role != "search":
                continue
            cell = by_label[f"{member.base_model}/{member.task}/{member.family}"]
            job = cell.restore(member.number, member.params, member.fidelity)
            if (config := cell.config(job)).key != member.key:
                raise SpecError(
                    f"a study must be finished with the task, model and defaults it was begun with, but those of "
                    f"{cell.design.label} changed: rename the study, or delete its folder in results/studies"
                )
            proposals.append(Proposal(member, config, (cell, job)))
        return proposals

    def next(self, limit: int, waiting: bool = False) -> list[Proposal]:
        """Jobs of the cell that is furthest behind; another base model's only while a worker waits."""
        for model in dict.fromkeys(cell.design.model for cell in self.cells):
            cells = [c for c in self.cells if c.design.model == model and id(c) not in self._finished]
            cells.sort(key=lambda c: c.spent / c.design.budget)
            for ahead in (False, True) if waiting else (False,):
                for cell in cells:
                    if jobs := self._ask(cell, limit, ahead):
                        return [self._proposal(cell, job) for job in jobs]
            if not waiting and any(id(cell) not in self._finished for cell in cells):
                break
        return []

    def _ask(self, cell: Cell, limit: int, ahead: bool) -> list[Job]:
        if cell.gave_up is None and (stop := hopeless(cell, self._arena(cell))) is not None:
            cell.gave_up = stop.reason
            self._stopped(stop)
        jobs = cell.next(limit, ahead)
        if not jobs and not cell.running:
            self._finished.add(id(cell))
        return jobs

    def _arena(self, cell: Cell) -> list[Cell]:
        place = cell.design.model, cell.design.task
        return [other for other in self.cells if (other.design.model, other.design.task) == place]

    def tell(self, proposal: Proposal, result: TrialResult) -> None:
        """Bring a job's result to its cell."""
        cell, job = proposal.token
        cell.tell(job, result)

    @property
    def planned(self) -> int:
        """Jobs that all budgets pay for, about."""
        return sum(cell.planned_jobs for cell in self.cells)

    @property
    def left(self) -> int:
        """Of these, those not asked for yet."""
        return self.planned - sum(len(cell.results) for cell in self.cells)

    def leaders(self) -> list[str]:
        """The best of each task and base model."""
        best: dict[str, tuple[float, str]] = {}
        for cell in self.cells:
            if (found := cell.best()) is not None:
                design = cell.design
                arena = f"{design.task.name}" + (
                    f" on {design.model.name}" if len(design.study.base_models) > 1 else ""
                )
                shown = found.value if design.higher_is_better else -found.value
                best[arena] = max(
                    best.get(arena, (-float("inf"), "")), (found.value, f"{shown:.3f} {design.family.name}")
                )
        return [f"{arena}: best {text}" for arena, (_, text) in best.items()]

    def _proposal(self, cell: Cell, job: Job) -> Proposal:
        config, design = cell.config(job), cell.design
        member = Member(
            key=config.key,
            role="search",
            family=design.family.name,
            task=design.task.name,
            base_model=design.model.name,
            repetition=0,
            number=job.number,
            params=cell.points[job.number],
            reused=False,
            asked_at=now(),
            fidelity=config.fidelity,
        )
        return Proposal(member, config, (cell, job))


def hopeless(cell: Cell, arena: Sequence[Cell]) -> Stop | None:
    """Why a cell should give up, or None.

    Args:
        cell: Asks whether to go on.
        arena: All cells of its task and base model.
    """
    design, limit = cell.design, cell.design.search.give_up
    if limit is None or not (scores := cell.scored()) or cell.unused <= 0:
        return None
    sign = 1.0 if design.higher_is_better else -1.0
    leader, family = max((best.value, other.design.family.name) for other in arena if (best := other.best()))
    stderr = max((score.stderr for score in scores if score.stderr is not None), default=None)
    found = chance([sign * score.value for score in scores], cell.trials_left, leader, stderr)
    if found > limit:
        return None
    return Stop(
        family=design.family.name,
        task=design.task.name,
        base_model=design.model.name,
        scored=len(scores),
        left=cell.unused,
        seconds=cell.unused * cell.full_s,
        best=sign * max(sign * score.value for score in scores),
        leader=sign * leader,
        leader_family=family,
        chance=found,
        limit=limit,
        at=now(),
    )


def search_cells(study: StudySpec, setting: Setting, guess_s: dict[str, float]) -> list[Cell]:
    """One cell per base model, task and family.

    Args:
        study: What is asked.
        setting: Its names, resolved.
        guess_s: Expected seconds of a full trial by family, for budgets in seconds.
    """
    sampler, scheduler = (
        load("search/samplers", study.search.sampler)(),
        load("search/schedulers", study.search.scheduler)(),
    )
    return [
        Cell(
            CellDesign(
                study=study,
                family=family,
                model=model.ref,
                task=task.ref,
                higher_is_better=task.higher_is_better,
                evaluation=search_evaluation(study, setting),
                steps=partial(steps_of, study, family, task.rows),
                sampler=sampler,
                scheduler=scheduler,
                guess_s=guess_s.get(family.name, 0.0),
            )
        )
        for model in setting.models
        for task in setting.tasks
        for family in setting.families.values()
    ]


def search_evaluation(study: StudySpec, setting: Setting) -> Evaluation:
    """What search trials are scored on."""
    off_target = setting.off_target_refs if study.search.off_target else ()
    return Evaluation("validation", study.search.limit, off_target, study.search.fractions)


def confirm_evaluation(study: StudySpec, setting: Setting) -> Evaluation:
    """What finalists are scored on."""
    return Evaluation("test", study.confirm.limit, setting.off_target_refs, (1.0,))


def base_proposals(study: StudySpec, setting: Setting) -> Iterator[Proposal]:
    """Every base model on every task and the off-target suite, on validation and on test."""
    for model, task, split in _product(setting):
        limit = study.search.limit if split == "validation" else study.confirm.limit
        evaluation = Evaluation(split, limit, setting.off_target_refs, (1.0,))
        config = TrialConfig(
            pipeline=Pipeline(model.ref, (Stage(method="none"),)), task=task.ref, steps=0, evaluation=evaluation
        )
        yield Proposal(_member(config, "base", BASE_FAMILY), config)


def confirm_proposals(study: StudySpec, setting: Setting, cells: Sequence[Cell]) -> Iterator[Proposal]:
    """The best families of each task and base model, each with the same fresh seeds, on the test split."""
    for model, task, split in _product(setting):
        if split != "test":
            continue
        arena = [cell for cell in cells if (cell.design.model, cell.design.task) == (model.ref, task.ref)]
        evaluation = confirm_evaluation(study, setting)
        for cell, best in finalists(arena, study.confirm.finalists):
            for repetition in range(study.confirm.seeds):
                yield _fresh_run(cell, best, repetition, evaluation)


def finalists(cells: Sequence[Cell], count: int) -> list[tuple[Cell, Best]]:
    """The best cells of one task and base model by validation score at full fidelity; equals in the study's order."""
    scored = [(cell, best) for cell in cells if (best := cell.best()) is not None]
    return sorted(scored, key=lambda pair: -pair[1].value)[:count]


def restored_cells(paths: Paths, cells: Sequence[Cell], members: Sequence[Member]) -> Sequence[Cell]:
    """The cells with everything that is on record."""
    source = SearchSource(cells)
    for proposal in source.restore(members):
        if (result := find_result(paths, proposal.config.key)) is not None:
            source.tell(proposal, result)
    return cells


def _fresh_run(cell: Cell, best: Best, repetition: int, evaluation: Evaluation) -> Proposal:
    design = cell.design
    config = TrialConfig(
        pipeline=design.family.pipeline(design.model, best.params),
        task=design.task,
        steps=design.steps(best.params),
        fidelity=1.0,
        seed=derive_seed(design.study.seed, "confirm", repetition),
        evaluation=evaluation,
    )
    member = _member(config, "confirm", design.family.name)
    return Proposal(replace(member, repetition=repetition, number=best.number, params=best.params), config)


def _product(setting: Setting) -> Iterator[tuple[ModelInfo, TaskInfo, str]]:
    for model in setting.models:
        for task in setting.tasks:
            for split in ("validation", "test"):
                yield model, task, split


def _member(config: TrialConfig, role: Role, family: str) -> Member:
    names = config.pipeline.base_model.name, config.task.name
    return Member(
        key=config.key,
        role=role,
        family=family,
        task=names[1],
        base_model=names[0],
        repetition=0,
        number=0,
        params={},
        reused=False,
        asked_at=now(),
    )
