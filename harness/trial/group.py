"""Trials: trained, scored, and written down, whatever happens; those that are alike train and are scored together.

`run_trial` is a pure function of its configuration; the record beside it is the truth that everything else derives
from. A failure is a record too, with its cause, its cost and no score; only what the configuration names and is not there
or cannot be put together (`SpecError`), a disk that refuses and an interrupt leave without one.

Costs are of this job alone: a trial that went on from a checkpoint names what it inherited under
`provenance.effective.inherited`, so that the sum over records is what was really spent. What trials do together is
charged to them in equal shares. Imports and base weights are charged to the first trial of a process that needs them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from harness.cost.meter import Meter
from harness.errors import HarnessError
from harness.records.claims import claimed
from harness.records.execution import Execution
from harness.records.results import find_or_set_aside
from harness.records.trial import COMPLETE, TrialConfig, TrialResult
from harness.records.turns import pauses
from harness.training.choices import refusal
from harness.trial.accounts import Accounts
from harness.trial.failures import Split
from harness.trial.packs import alone_because, cut, kindred
from harness.trial.process import WarmProcess, pick_device, release_memory
from harness.trial.record import write
from harness.trial.run import Run, each
from harness.trial.score_group import score
from harness.trial.stage_run import Opened, Start, Tuned, begin, finish, hand_on, keep, open_trial, prepare
from harness.trial.train_group import train
from harness.trial.workspace import Workspace

__all__ = ["Workspace", "refusal", "run_pack", "run_trial", "warm_up"]


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
    process, every = process or WarmProcess(), {config.key: config for config in configs}
    results, pause = _records(configs, workspace), pauses()
    while waiting := [config for key, config in every.items() if key not in results]:
        for group in cut(waiting, 1, workspace.together):
            results |= _run_claimed(group, workspace, process)
        if results.keys() != every.keys():  # what is left is being run by another process, for another study
            time.sleep(next(pause))
    return [results[config.key] for config in configs]


def _run_claimed(group: Sequence[TrialConfig], workspace: Workspace, process: WarmProcess) -> dict[str, TrialResult]:
    """Run those trials of a group that no other process runs now; their records by key, and those that came meanwhile."""
    with claimed(workspace.paths, [config.key for config in group]) as mine:
        ours = [config for config in group if config.key in mine]
        results = _records(ours, workspace)
        left = [config for config in ours if config.key not in results]
        if left:
            results |= {result.config.key: result for result in _run_group(_runs(left, workspace, process))}
    return results


def _records(configs: Sequence[TrialConfig], workspace: Workspace) -> dict[str, TrialResult]:
    return {config.key: known for config in configs if (known := _known(config, workspace))}


def _known(config: TrialConfig, workspace: Workspace) -> TrialResult | None:
    result = find_or_set_aside(workspace.paths, config.key)
    return result if not workspace.keep_model or workspace.paths.model(config.key).exists() else None


def _runs(configs: Sequence[TrialConfig], workspace: Workspace, process: WarmProcess) -> list[Run]:
    """Trials with meters, in equal shares charged with what this process took to get ready if nobody was yet."""
    if process.imports is None:
        process.get_ready(workspace)
    runs = []
    for config in configs:
        meter = Meter(pick_device(workspace.device))
        if process.imports is not None:
            meter.add(process.imports, 1 / len(configs))
        runs.append(_run(config, workspace, process, meter))
    process.imports = Meter("cpu")
    return runs


def _run(config: TrialConfig, workspace: Workspace, process: WarmProcess, meter: Meter) -> Run:
    return Run(
        config=config,
        workspace=workspace,
        process=process,
        accounts=Accounts(meter=meter),
        execution=Execution(device=meter.device, threads=workspace.threads, alone=alone_because(config)),
    )


def _known_split(runs: Sequence[Run]) -> Split | None:
    """That trials of this kind were seen not to fit, or to be slower together, before anything is done for these."""
    run = runs[0]
    if run.process.room.refused([one.config for one in runs]):
        return Split(f"{len(runs)} trials of this kind were seen not to fit together", in_halves=True)
    kind = (kindred(run.config), run.meter.device, run.workspace.threads)
    reason = run.process.solo_costs.slower(kind) if len(runs) > 1 else None
    return None if reason is None else Split(reason)


def _run_group(runs: Sequence[Run]) -> list[TrialResult]:
    """Run trials that are alike, in fewer at a time where they do not fit, alone where they cannot or should not be stacked."""
    outcome = _known_split(runs) or _results(runs)
    if not isinstance(outcome, Split):
        return outcome
    size = (len(runs) + 1) // 2 if outcome.in_halves else 1
    if outcome.in_halves:
        runs[0].process.room.shrink(runs[0].config, size)
    # They start anew, but what the attempt took stays on their meters.
    fresh = [_run(run.config, run.workspace, run.process, run.meter) for run in runs]
    for run in fresh:
        run.accounts.train_before_s = run.meter.so_far("train")
    release_memory()
    parts = [fresh[start : start + size] for start in range(0, len(fresh), size)]
    for part in parts:
        if len(part) == 1:
            part[0].execution = replace(part[0].execution, alone=outcome.reason)
    return [result for part in parts for result in _run_group(part)]


def _results(runs: Sequence[Run]) -> list[TrialResult] | Split:
    """Run trials that are alike to their ends, and write the records; nothing is written where they must split."""
    release_memory()
    with tempfile.TemporaryDirectory(prefix="harness-trial-") as scratch:
        # Before it is opened, a mistake is the study's and goes up; afterwards it is wrong with this trial only.
        attempts = [run.attempt(partial(open_trial, run), goes_up=HarnessError) for run in runs]
        tuned = _tuned([opened for opened in attempts if isinstance(opened, Opened)], Path(scratch))
        if isinstance(tuned, Split):
            return tuned
        if (split := score(tuned)) is not None:
            return split
        if runs[0].workspace.keep_model:
            each([trial for trial in tuned if trial.run.outcome == COMPLETE], keep)
    return [write(run) for run in runs]


def _tuned(opened: Sequence[Opened], scratch: Path) -> list[Tuned] | Split:
    """Train all stages of trials; each starts from its base, or from what its last stage left."""
    states: list[Start | Tuned] = each(opened, begin)
    while starts := [state for state in states if isinstance(state, Start)]:
        trained = _train_stage(starts, scratch)
        if isinstance(trained, Split):
            return trained
        states = [*(state for state in states if isinstance(state, Tuned)), *trained]
    return [state for state in states if isinstance(state, Tuned)]


def _train_stage(starts: Sequence[Start], scratch: Path) -> list[Start | Tuned] | Split:
    """Train the next stage of trials. What it leaves for a further stage is on disk, so that its model can go."""
    if any(start.steps_done for start in starts):  # the first stage finds memory released; a collection takes 0.3 s
        release_memory()
    prepared = each(starts, prepare)
    split = train(prepared)
    return split or each(each(prepared, finish), partial(hand_on, scratch=scratch))
