"""What a phase wants to have run, and how it takes what came back: a fixed list of trials, or cells that search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import SpecError, StorageError
from harness.files import now
from harness.records.bill import Share
from harness.records.lost_work import Stop
from harness.records.study_trials import Member
from harness.records.trial import TrialConfig, TrialResult
from harness.search.cell import Cell
from harness.search.design import Job, Place
from harness.search.early_stopping import chance
from harness.trial.packs import alike


@dataclass(frozen=True)
class Proposal:
    """A trial that a phase wants, and the line that says why."""

    member: Member
    config: TrialConfig


class Source(ABC):
    """What a phase wants to have run."""

    @abstractmethod
    def next(self, limit: int, waiting: bool = False) -> list[Proposal]:
        """The next trials that are alike; none before more results are in, or none at all.

        Args:
            limit: Most of them, at least one.
            waiting: Whether a worker has nothing to do otherwise.
        """

    @abstractmethod
    def tell(self, proposal: Proposal, result: TrialResult) -> None:
        """Take a trial's record.

        Args:
            proposal: What `next` gave.
            result: The record.
        """

    @property
    @abstractmethod
    def planned(self) -> int:
        """About how many trials there will be in all."""

    @property
    @abstractmethod
    def left(self) -> int:
        """About how many of them `next` has not given yet."""

    @property
    @abstractmethod
    def shares(self) -> Mapping[str, Share]:
        """How many of its trials each family has had, and about how many it is to have."""

    def leaders(self) -> Sequence[str]:
        """The highest so far, one sentence for each task."""
        return ()


class FixedSource(Source):
    """A list of trials that is known in advance."""

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        self.proposals = proposals
        self._asked = 0
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

    @property
    def shares(self) -> Mapping[str, Share]:
        """By family."""
        planned = Counter(proposal.member.family for proposal in self.proposals)
        ended = Counter(p.member.family for p in self.proposals if p.member.key in self._results)
        return {family: Share(ended=ended[family], planned=count) for family, count in planned.items()}

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
        """Take the cells of a study.

        Args:
            cells: In the study's order.
            stops: Cells that gave up under an earlier driver.
            stopped: Is told when another one gives up.
        """
        self.cells, self._stopped = cells, stopped
        self._cells = {cell.design.place: cell for cell in cells}
        self._finished: set[Place] = set()
        for stop in stops:
            place = Place(base_model=stop.base_model, task=stop.task, family=stop.family)
            if place in self._cells:
                self._cells[place].gave_up = stop.reason

    def restore(self, members: Sequence[Member]) -> list[Proposal]:
        """What earlier drivers asked for, in the same order.

        Raises:
            SpecError: When a task, a model or a default has changed since.
            StorageError: When a line is none that a driver of this study wrote.
        """
        proposals = []
        for member in (member for member in members if member.role == "search"):
            try:
                cell = self._cell(member)
                config = cell.config(cell.restore(member.number, member.params, member.fidelity))
            except (LookupError, ValueError) as error:
                raise StorageError(
                    f"members.jsonl must hold what was asked for in this study, but the line of trial {member.key} has no place "
                    f"in it ({error!r}): restore the file, or delete the study's folder in results/studies (records stay)"
                ) from error
            # Another key means another trial: going on would mix the results of two questions.
            if config.key != member.key:
                raise SpecError(
                    f"a study must be finished with the task, model and defaults it was begun with, but those of "
                    f"{cell.design.label} changed: rename the study, or delete its folder in results/studies"
                )
            proposals.append(Proposal(member, config))
        return proposals

    def next(self, limit: int, waiting: bool = False) -> list[Proposal]:
        """Jobs of the cell that is furthest behind; another base model's only while a worker waits."""
        for model in dict.fromkeys(cell.design.model for cell in self.cells):
            cells = [c for c in self.cells if c.design.model == model and c.design.place not in self._finished]
            cells.sort(key=lambda cell: cell.spending.spent / cell.design.budget.amount)
            proposals = self._first_jobs(cells, limit, ahead=False)
            if waiting and not proposals:
                proposals = self._first_jobs(cells, limit, ahead=True)
            if proposals:
                return proposals
            if not waiting and any(cell.design.place not in self._finished for cell in cells):
                return []  # the next base model's turn comes when this one's cells are done
        return []

    def _first_jobs(self, cells: Sequence[Cell], limit: int, ahead: bool) -> list[Proposal]:
        """Jobs of the first cell that has any; `ahead` of results that it would rather see before."""
        for cell in cells:
            if jobs := self._ask(cell, limit, ahead):
                return [self._proposal(cell, job) for job in jobs]
        return []

    def _ask(self, cell: Cell, limit: int, ahead: bool) -> list[Job]:
        if cell.gave_up is None and (stop := hopeless(cell, self._arena(cell))) is not None:
            cell.gave_up = stop.reason
            self._stopped(stop)
        jobs = cell.next(limit, ahead)
        if not jobs and not cell.history.running:
            self._finished.add(cell.design.place)
        return jobs

    def _arena(self, cell: Cell) -> list[Cell]:
        """All cells of a cell's base model and task, itself included."""
        design = cell.design
        return [c for c in self.cells if (c.design.model, c.design.task) == (design.model, design.task)]

    def _cell(self, member: Member) -> Cell:
        return self._cells[Place(base_model=member.base_model, task=member.task, family=member.family)]

    def tell(self, proposal: Proposal, result: TrialResult) -> None:
        """Bring a job's result to its cell."""
        member, cell = proposal.member, self._cell(proposal.member)
        cell.tell(cell.design.job(member.number, member.fidelity), result)

    @property
    def planned(self) -> int:
        """Jobs that all budgets pay for, about."""
        return sum(cell.planned_jobs for cell in self.cells)

    @property
    def left(self) -> int:
        """Of these, those not asked for yet."""
        return self.planned - sum(len(cell.history.results) for cell in self.cells)

    @property
    def shares(self) -> Mapping[str, Share]:
        """By family, over its cells."""
        ended, planned = Counter[str](), Counter[str]()
        for cell in self.cells:
            ended[cell.design.family.name] += cell.history.finished
            planned[cell.design.family.name] += cell.planned_jobs
        return {family: Share(ended=ended[family], planned=planned[family]) for family in planned}

    def leaders(self) -> list[str]:
        """The highest of each task and base model: no verdict, since each is one run, picked by its score."""
        several = len({cell.design.model for cell in self.cells}) > 1
        leaders: dict[str, tuple[float, str]] = {}
        for cell in self.cells:
            if (best := cell.best()) is not None:
                design = cell.design
                arena = f"{design.task.name} on {design.model.name}" if several else design.task.name
                score = best.value if design.higher_is_better else -best.value
                candidate = (best.value, f"{score:.3f} {design.family.name}")
                leaders[arena] = max(leaders.get(arena, candidate), candidate)
        return [f"{arena}: highest on validation {text} (no verdict yet)" for arena, (_, text) in leaders.items()]

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
            params=cell.history.points[job.number],
            reused=False,
            asked_at=now(),
            fidelity=config.fidelity,
        )
        return Proposal(member, config)


def hopeless(cell: Cell, arena: Sequence[Cell]) -> Stop | None:
    """Why a cell should give up, or None.

    Args:
        cell: Asks whether to go on.
        arena: All cells of its task and base model.
    """
    design, spending, limit = cell.design, cell.spending, cell.design.search.give_up
    if limit is None or not (scores := cell.history.scored()) or spending.unused <= 0:
        return None
    # Scores are compared with larger better, and written down in the task's own metric.
    sign = 1.0 if design.higher_is_better else -1.0
    leader, family = max((best.value, other.design.family.name) for other in arena if (best := other.best()))
    # It stands in for the spread of equal scores; the largest one is the careful choice.
    stderr = max((score.stderr for score in scores if score.stderr is not None), default=None)
    probability = chance([sign * score.value for score in scores], spending.trials_left, leader, stderr)
    if probability > limit:
        return None
    return Stop(
        family=design.family.name,
        task=design.task.name,
        base_model=design.model.name,
        scored=len(scores),
        left=spending.unused,
        seconds=spending.unused * spending.full_s,
        best=sign * max(sign * score.value for score in scores),
        leader=sign * leader,
        leader_family=family,
        chance=probability,
        limit=limit,
        at=now(),
    )
