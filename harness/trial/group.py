"""Trials: trained, scored, and written down, whatever happens; those that are alike train and are scored together.

`run_trial` is a pure function of its configuration; the record beside it is the truth that everything else derives
from. A failure is a record too, with its cause, its cost and no score; only what the configuration names and is not there
or cannot be put together (`SpecError`), a disk that refuses and an interrupt leave without one.

Costs are of this job alone: a trial that went on from a checkpoint names what it inherited under
`provenance.effective["inherited"]`, so that the sum over records is what was really spent. What trials do together is
charged to them in equal shares. Imports and base weights are charged to the first trial of a process that needs them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cost.meter import Meter, free_memory
from harness.errors import Diverged, StorageError, describe
from harness.evaluation.loglikelihood import StackedModels
from harness.nn.determinism import random_state_kept, resolve_precision
from harness.records.results import find_or_set_aside
from harness.records.trial import TrialConfig, TrialResult
from harness.training.alone import Alone
from harness.training.choices import refusal
from harness.training.session import Session
from harness.training.solo_cost import Solo
from harness.training.together import Together
from harness.training.trl import run_trainer
from harness.trial.failures import out_of_memory
from harness.trial.packs import alike, alone_because, cut
from harness.trial.process import WarmProcess, pick_device, release_memory
from harness.trial.run import Run
from harness.trial.workspace import Workspace

__all__ = ["Workspace", "refusal", "run_pack", "run_trial", "warm_up"]

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.evaluation.evaluate import Evaluated
    from harness.models.base_model import BaseModel
    from harness.tasks.task import Task


def warm_up(workspace: Workspace) -> Callable[[Sequence[TrialConfig]], list[TrialResult]]:
    """What a worker of trials does when it starts: import what they need. Returns what runs its packs."""
    process = WarmProcess()
    process.get_ready(workspace)
    return partial(run_pack, workspace=workspace, process=process)


def run_trial(
    config: TrialConfig, workspace: Workspace | None = None, process: WarmProcess | None = None
) -> TrialResult:
    """Run one trial, or return its record if it has one.

    Args:
        config: The trial.
        workspace: Where it runs.
        process: What earlier trials of this process left for it; None for nothing.

    Raises:
        SpecError: When the task, model or pipeline is wrong, which is the user's to mend.
        StorageError: When the record cannot be written.
    """
    return run_pack([config], workspace or Workspace(), process)[0]


def run_pack(
    configs: Sequence[TrialConfig], workspace: Workspace, process: WarmProcess | None = None
) -> list[TrialResult]:
    """Run trials in this process, together where they are alike; what has a record is not run again.

    Args:
        configs: The trials.
        workspace: Where they run.
        process: What earlier trials of this process left for them; None for nothing.

    Returns:
        Their records, in the order of `configs`.
    """
    process = process or WarmProcess()
    results = {config.key: known for config in configs if (known := _known(config, workspace))}
    waiting = list({config.key: config for config in configs if config.key not in results}.values())
    for group in cut(waiting, 1, workspace.together):
        runs = _runs(group, workspace, process)
        results |= {result.config.key: result for result in _run_group(runs)}
    return [results[config.key] for config in configs]


def _runs(configs: Sequence[TrialConfig], workspace: Workspace, process: WarmProcess) -> list[Run]:
    """Trials with meters, in equal shares charged with what this process took to get ready if nobody was yet."""
    if process.imports is None:
        process.get_ready(workspace)
    runs = [Run(config, workspace, process, Meter(pick_device(workspace.device))) for config in configs]
    for run in runs:
        if process.imports is not None:
            run.meter.add(process.imports, 1 / len(runs))
    process.imports = Meter("cpu")
    return runs


def _known(config: TrialConfig, workspace: Workspace) -> TrialResult | None:
    found = find_or_set_aside(workspace.paths, config.key)
    return found if not workspace.keep_model or workspace.paths.model(config.key).exists() else None


def _run_group(runs: Sequence[Run]) -> list[TrialResult]:
    """Run trials that are alike, in fewer at a time where they do not fit, alone where they cannot be stacked."""
    try:
        return _Group(runs).results()
    except _Apart as apart:
        size = -(-len(runs) // 2) if apart.in_halves else 1
        reason = apart.reason  # outside, so that what failed, and its memory, can be collected
    # What the attempt took stays on their meters.
    fresh = [Run(run.config, run.workspace, run.process, run.meter) for run in runs]
    del runs
    release_memory()
    parts = [fresh[start : start + size] for start in range(0, len(fresh), size)]
    for part in parts:
        if len(part) == 1:
            part[0].effective["alone"] = reason
    return [result for part in parts for result in _run_group(part)]


class _Apart(Exception):
    """Trials cannot go on together."""

    def __init__(self, reason: str, in_halves: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.in_halves = reason, in_halves


class _Group:
    """Trials that are alike, while they run."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        for run in runs:
            if reason := alone_because(run.config):
                run.effective["alone"] = reason

    def results(self) -> list[TrialResult]:
        """Run to the end, and write the records.

        Raises:
            _Apart: When the trials must run in smaller groups; nothing is written then.
        """
        release_memory()
        with tempfile.TemporaryDirectory(prefix="harness-trial-") as scratch:
            self._each(Run.open)
            bases = {id(run): run.base for run in self._going}
            for index in range(max((len(run.stages) for run in self._going), default=0)):
                self._stage(index, bases, Path(scratch))
            self._each(lambda run: None if run.stages else run.untouched())
            self._score()
            if self.runs[0].workspace.keep_model:
                self._each(lambda run: run.keep(bases[id(run)]))
        return [run.write() for run in self.runs]

    def _stage(self, index: int, bases: dict[int, BaseModel], scratch: Path) -> None:
        """Train one stage of every trial; each starts from its base, or from what its last stage left."""
        if index:
            for run in self._going:
                with run.guarded():
                    objective = run.stages[index - 1].stage.objective
                    bases[id(run)] = run.merged(scratch / f"stage{index}", bases[id(run)], objective)
        self._each(lambda run: run.prepare(run.stages[index], bases[id(run)]))
        self._train()
        self._each(lambda run: run.trained(run.stages[index]))

    @property
    def _going(self) -> list[Run]:
        return [run for run in self.runs if run.status is None]

    def _each(self, action: Callable[[Run], None]) -> None:
        for run in self._going:
            with run.guarded():
                action(run)

    @contextmanager
    def _shared(self, runs: Sequence[Run], phase: str) -> Iterator[None]:
        """What several trials do at once: charged in equal shares; an error is nobody's own.

        Raises:
            _Apart: When it failed for several trials.
        """
        try:
            with ExitStack() as stack:
                for run in runs:
                    stack.enter_context(run.meter.phase(phase, 1 / len(runs)))
                yield
        except (StorageError, _Apart):
            raise
        except Exception as error:
            if len(runs) > 1:
                raise _Apart(f"training together failed ({describe(error)})", out_of_memory(error)) from error
            runs[0].fail(error)

    def _train(self) -> None:
        """Train the learners of all trials that go on; whoever ends leaves the others undisturbed."""
        runs = [run for run in self._going if run.learner is not None]
        if any(run.trainee.trainer is not None for run in runs):
            self._train_elsewhere(runs)  # whose random state a checkpoint needs
        else:
            with random_state_kept():
                solo = self._calibrated(runs)
                while active := [run for run in runs if run.trainee.active]:
                    self._advance(active)
            self._settle(runs, solo)
        for run in runs:
            run.count()

    def _train_elsewhere(self, runs: Sequence[Run]) -> None:
        for run in runs:
            with self._shared([run], "train"):
                paused = partial(self._score_paused, [run], run.trainee.model, 1)
                run_trainer(run.trainee, paused, run.resumed_from)

    def _advance(self, runs: Sequence[Run]) -> None:
        """Train together until one of the trials ends or fails."""
        session: Session | None = None
        with self._shared(runs, "train"):
            session = _session(runs)
        while session is not None and all(run.trainee.active and run.status is None for run in runs):
            with self._shared(runs, "train"):
                session = self._advanced(session, runs)
            due = [
                run for run in runs if run.trainee.failure is None and run.trainee.step in run.trainee.watch.score_at
            ]
            if due and runs[0].status is None:
                with session.scoring([run.trainee for run in due]) as (model, count):
                    self._score_paused(due, model, count)
        if session is not None and (len(runs) > 1 or runs[0].status is None):
            with self._shared(runs, "train"):
                session.close()
        for run in runs:
            if run.status is not None:
                run.trainee.failure = run.trainee.failure or Diverged(run.reason)

    def _advanced(self, session: Session, runs: Sequence[Run]) -> Session:
        """The session at its next pause; a trial alone that runs out of memory goes on with less speed."""
        try:
            session.advance(min(run.trainee.until_pause for run in runs))
            return session
        except Exception as error:
            learner = runs[0].trainee
            if len(runs) > 1 or not out_of_memory(error) or not learner.spare_memory():
                raise
        session.close()
        release_memory()
        return Alone(learner)

    def _calibrated(self, runs: Sequence[Run]) -> list[Solo | None]:
        """What each would take alone, where several train together; fewer of them where memory does not suffice.

        Raises:
            _Apart: When they do not fit, or when together they say something else than alone.
        """
        if len(runs) < 2:
            return [None] * len(runs)
        first = runs[0].trainee
        kind = (alike(runs[0].config), runs[0].meter.device, runs[0].workspace.threads)
        costs = runs[0].process.solo_costs
        with self._shared(runs, "train"):
            solos = costs.calibrate([run.trainee for run in runs], kind)
            needed = sum(solo.step_memory_bytes for solo in solos)
            free = free_memory(first.setup.device)
            if free is not None and needed > 0.9 * free:
                raise _Apart(f"{len(runs)} trials need {needed} bytes together, of which {free} are free", True)
            if reason := costs.differ([run.trainee for run in runs], kind):
                raise _Apart(reason)
        return list(solos)

    def _settle(self, runs: Sequence[Run], solos: Sequence[Solo | None]) -> None:
        """Put into each trial's record what it would have taken alone."""
        for run, solo in zip(runs, solos, strict=True):
            if solo is not None:
                run.trained_with = len(runs)
                run.solo_equivalent_s = solo.seconds_per_token * run.trainee.padded_tokens
                run.meter.peak_memory_bytes = solo.peak_memory_bytes
                run.meter.peak_memory_from += ", of steps alone"

    def _score_paused(self, runs: Sequence[Run], model: PreTrainedModel, count: int) -> None:
        first = runs[0]
        outcomes = self._evaluated(runs, model, count, first.target)
        if first.status is not None:  # scoring a single one crashed
            first.trainee.failure = Diverged(first.reason)
            return
        for run, outcome in zip(runs, outcomes, strict=True):
            try:
                run.paused(outcome)
            except Diverged as failure:
                run.trainee.failure = failure

    def _score(self) -> None:
        """The task first, then the off-target suite."""
        from harness.nn.stack import stacked

        if not (runs := self._going):
            return
        with self._shared(runs, "evaluate"), ExitStack() as stack:
            models = [run.model for run in runs if run.model is not None]
            methods = [run.trainee.choices.method for run in runs if run.learner is not None]
            model, count = stack.enter_context(stacked(models, methods))
            tasks = [runs[0].target, *(runs[0].task(ref) for ref in runs[0].config.evaluation.off_target)]
            found = [_evaluate(runs, model, count, tasks[0])]
            other = stack.enter_context(_elsewhere(runs, model))
            found += [_evaluate(runs, other, count, task) for task in tasks[1:]]
        if any(run.status is not None for run in runs):
            return
        for outcomes in found:
            for run, outcome in zip(runs, outcomes, strict=True):
                if run.status is None:
                    with run.guarded():
                        run.scored(outcome)
        for run in self._going:
            self._walk(run, tasks)

    def _walk(self, run: Run, tasks: Sequence[Task]) -> None:
        """Score a trial at the other places that its retention names."""
        with run.guarded(), run.meter.phase("evaluate"):
            for place in run.walk():
                assert run.model is not None
                run.passed(place, [_evaluate([run], run.model, 1, task)[0] for task in tasks])

    def _evaluated(
        self, runs: Sequence[Run], model: PreTrainedModel, count: int, task: Task
    ) -> list[Evaluated | Diverged]:
        outcomes: list[Evaluated | Diverged] = []
        with self._shared(runs, "evaluate"):
            outcomes = _evaluate(runs, model, count, task)
        return outcomes


def _session(runs: Sequence[Run]) -> Session:
    """A way to train these learners.

    Raises:
        _Apart: When they cannot be stacked.
    """
    from harness.nn.stack import CannotStack

    learners = [run.trainee for run in runs]
    if len(learners) == 1:
        return Alone(learners[0])
    try:
        return Together(learners)
    except CannotStack as reason:
        raise _Apart(str(reason)) from reason


@contextmanager
def _elsewhere(runs: Sequence[Run], model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """What tasks other than the trials' own are asked of; a method that has a say in it runs alone."""
    learner = runs[0].learner
    if learner is None or learner.merged:
        yield model
    else:
        with learner.choices.method.elsewhere(model) as other:
            yield other


def _evaluate(runs: Sequence[Run], model: PreTrainedModel, count: int, task: Task) -> list[Evaluated | Diverged]:
    """Score trials on their split, in bfloat16 on a GPU that has it; the base takes the same path."""
    import torch

    evaluation, device = runs[0].config.evaluation, model.device.type
    bfloat16 = resolve_precision("auto", device) == "bfloat16"
    with random_state_kept(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
        evaluator, models = runs[0].process.evaluator, StackedModels(model, count)
        return evaluator.evaluate(models, runs[0].tokenizer, task, evaluation.split, evaluation.limit)
