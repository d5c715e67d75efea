"""Trains a stage of trials that are alike, until each has done its steps or has failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.cost.meter import free_memory
from harness.nn.determinism import random_state_kept
from harness.records.trial import Ended
from harness.training import leaving
from harness.training.alone import Alone
from harness.training.learner import Learner
from harness.training.session import Session
from harness.training.solo_cost import Solo
from harness.training.together import Together
from harness.training.trl import run_trainer
from harness.trial import midway
from harness.trial.failures import Split, out_of_memory
from harness.trial.packs import alike, kindred
from harness.trial.process import release_memory
from harness.trial.run import shared
from harness.trial.score_group import score_live
from harness.trial.stage_run import Prepared, score_point

if TYPE_CHECKING:
    from harness.evaluation.evaluate import ScoreOutcome

MEMORY_SHARE = 0.9
"""Share of the free memory that steps may take: what calibration measured is not what the largest batch takes."""


def train(prepared: Sequence[Prepared]) -> Split | None:
    """Train the learners of all trials to their ends; one that ends leaves the others undisturbed.

    Returns:
        A split where trials cannot train together, else None; a learner's `failure` says what ended it early.
    """
    if any(trial.learner.trainer is not None for trial in prepared):
        for trial in prepared:
            _train_by_trl(trial)
        return None
    with (
        random_state_kept(),
        leaving.heeded(),
    ):  # a trainer of TRL's goes without: checkpoints need the state that it leaves
        return _train_in_step(prepared)


def _train_by_trl(trial: Prepared) -> None:
    opened, learner = trial.start.opened, trial.learner

    def paused() -> None:
        _score_paused([trial], lambda: score_live([opened], learner.model, 1, opened.target))

    ended = shared([trial.run], "train", partial(run_trainer, learner, paused, trial.resumed_from))
    if ended is not None:
        _stop([trial], ended)


def _train_in_step(prepared: Sequence[Prepared]) -> Split | None:
    solos: list[Solo] = []
    training = [trial for trial in prepared if trial.learner.active]  # one that was interrupted may have done its steps
    if len(training) > 1:
        measured = shared([trial.run for trial in training], "train", partial(_measured, training))
        if isinstance(measured, Ended | Split):
            return _stop(training, measured)
        solos = measured
        for trial in training:
            trial.run.accounts.trained_with = max(trial.run.accounts.trained_with, len(training))
    if len(prepared) == 1:
        prepared[0].run.process.room.give(prepared[0].run.config, prepared[0].learner)
    alone = dict(zip((trial.run.config.key for trial in training), solos, strict=bool(solos)))
    saving = Saving(prepared, alone)
    while active := [trial for trial in prepared if trial.learner.active or trial.learner.due]:
        if split := _advance(active, saving):
            return split
    for trial, solo in zip(training, solos, strict=bool(solos)):
        trial.run.accounts.charge_as_alone(solo, trial.learner.padded_tokens, len(training))
    return None


def _measured(prepared: Sequence[Prepared]) -> list[Solo] | Split:
    """What each would take alone; a split where memory does not suffice, or together is not what alone is, or slower."""
    run, learners = prepared[0].run, [trial.learner for trial in prepared]
    costs, machine = run.process.solo_costs, (run.meter.device, run.workspace.threads)
    kind = (alike(run.config), *machine)
    solos = costs.calibrate(learners, kind)
    needed = sum(solo.step_memory_bytes for solo in solos)
    free = free_memory(run.meter.device)
    if free is not None and needed > MEMORY_SHARE * free:
        reason = f"{len(learners)} trials need {needed} bytes together, of which {free} are free"
        return Split(reason, in_halves=True)
    reason_apart = costs.differ(learners, kind) or costs.lose(learners, (kindred(run.config), *machine), solos)
    return solos if reason_apart is None else Split(reason_apart)


class Saving:
    """Saves trials that train: every so often, and when their process is asked to leave, which it does then."""

    def __init__(self, prepared: Sequence[Prepared], solos: Mapping[str, Solo]) -> None:
        """Take trials, and what those that train together would take alone, by their keys."""
        self._prepared, self._solos, self._longest_s = prepared, solos, 0.0

    def due(self) -> bool:
        """Whether to save now."""
        period = max(self._prepared[0].run.workspace.checkpoint_s, self._longest_s / midway.LARGEST_SHARE)
        return leaving.asked() or time.monotonic() - min(trial.run.saved_at for trial in self._prepared) > period

    def save(self, session: Session) -> Ended | Split | None:
        """Save every trial that has not failed; their learners get from the session what it holds of them."""
        started, trials = time.monotonic(), [trial for trial in self._prepared if trial.learner.failure is None]
        stopped = shared([trial.run for trial in self._prepared], "save", partial(self._save, session, trials))
        for trial in self._prepared:
            trial.run.saved_at = time.monotonic()
        self._longest_s = max(self._longest_s, time.monotonic() - started)
        leaving.leave()
        return stopped

    def remember_room(self, learner: Learner) -> None:
        """Let the process know how a trial was made to fit, by its learner."""
        run = next(trial.run for trial in self._prepared if trial.learner is learner)
        run.process.room.keep(run.config, learner)

    def _save(self, session: Session, trials: Sequence[Prepared]) -> None:
        session.keep()
        for trial in trials:
            midway.save(trial.run, trial.learner, trial.place, self._solos.get(trial.run.config.key))

    def scored(self, session: Session, due: Sequence[Prepared]) -> Split | None:
        """Score trials that pause; a process that is asked to leave meanwhile does not wait for the end of that."""
        try:
            with leaving.unheeded():
                return _score_paused(due, partial(_live_scores, session, due))
        except SystemExit:
            self.save(session)
            raise


def _advance(active: Sequence[Prepared], saving: Saving) -> Split | None:
    """Train in step until one of the trials ends; their sessions' state is the learners' again then."""
    runs, learners = [trial.run for trial in active], [trial.learner for trial in active]
    session: Session | Ended | Split = shared(runs, "train", partial(_session, learners))
    while isinstance(session, Session):
        due = [trial for trial in active if trial.learner.due]
        if due and (split := saving.scored(session, due)) is not None:
            return split
        if not all(learner.active for learner in learners):
            break
        session = shared(runs, "train", partial(_advanced, session, saving))
        if isinstance(session, Session) and saving.due():
            session = saving.save(session) or session
    closed = shared(runs, "train", session.close) if isinstance(session, Session) else session
    return None if closed is None else _stop(active, closed)


def _session(learners: Sequence[Learner]) -> Session | Split:
    """A way to train these learners; a split where they cannot be stacked."""
    from harness.nn.stack import CannotStack  # that module needs torch when it is imported

    try:
        return Alone(learners[0]) if len(learners) == 1 else Together(learners)
    except CannotStack as reason:
        return Split(str(reason))


def _advanced(session: Session, saving: Saving) -> Session:
    """The session at its next pause, or when it shall be saved; a trial short of memory goes on with less speed."""
    learners = session.learners
    try:
        session.advance(min(learner.until_pause for learner in learners), saving.due)
        return session
    except Exception as error:
        if not out_of_memory(error) or not session.spare_memory():
            raise
    saving.remember_room(learners[0])
    session.close()
    release_memory()
    return Alone(learners[0])


def _live_scores(session: Session, due: Sequence[Prepared]) -> list[ScoreOutcome]:
    opened = [trial.start.opened for trial in due]
    with session.scoring([trial.learner for trial in due]) as (model, count):
        return score_live(opened, model, count, opened[0].target)


def _score_paused(due: Sequence[Prepared], scores: Callable[[], list[ScoreOutcome]]) -> Split | None:
    """Score trials for their learning curves.

    Args:
        due: The trials.
        scores: What scores them, in their order.
    """
    outcomes = shared([trial.run for trial in due], "evaluate", scores)
    if isinstance(outcomes, Ended | Split):
        return _stop(due, outcomes)
    for trial, outcome in zip(due, outcomes, strict=True):
        score_point(trial, outcome)
    return None


def _stop(prepared: Sequence[Prepared], stop: Ended | Split) -> Split | None:
    """A split is for all trials; what ended a trial alone is its learner's failure."""
    if isinstance(stop, Split):
        return stop
    prepared[0].learner.failure = prepared[0].learner.failure or stop
    return None
