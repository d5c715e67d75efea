"""How what a run has gathered becomes the trial's record."""

from __future__ import annotations

from dataclasses import replace

from harness.records.execution import Resumed
from harness.records.results import write_result
from harness.records.trial import TrialResult
from harness.trial.model_folder import write_model_card
from harness.trial.provenance import plugin_code, provenance
from harness.trial.run import Run


def write(run: Run) -> TrialResult:
    """Write the items, then the record: whoever sees a record sees all of it."""
    from harness.evaluation.item_files import write_items

    paths, key, result = run.workspace.paths, run.config.key, record(run)
    if result.status.has_scores:
        write_items(paths.items(key), run.evaluated)
        paths.traceback(key).unlink(missing_ok=True)
    if paths.model(key).exists():
        write_model_card(paths.model(key), result)
    write_result(paths, result)
    return result


def record(run: Run) -> TrialResult:
    """The record of a trial that has ended; without scores where it failed."""
    scored = run.outcome.status.has_scores
    scores = tuple(outcome.score for outcome in run.evaluated) if scored else ()
    parts = tuple(part for outcome in run.evaluated for part in outcome.parts) if scored else ()
    workspace = run.workspace
    execution = replace(
        run.execution,
        peak_memory_from=run.meter.peak_memory_from,
        resumed=_resumed(run),
        latency_s={
            outcome.score.task: outcome.latency_s
            for whole in run.evaluated
            for outcome in whole.tasks or (whole,)
            if outcome.latency_s
        },
    )
    return TrialResult(
        config=run.config,
        status=run.outcome.status,
        reason=run.outcome.reason,
        scores=scores,
        parts=parts,
        curve=tuple(point if scored else replace(point, score=None) for point in run.curve),
        cost=run.accounts.cost(workspace.prices, workspace.threads, _peak_flops(run)),
        provenance=provenance(run.started_at, workspace.study, execution, plugin_code(run.config, (*scores, *parts))),
        notes=tuple(dict.fromkeys(run.notes)),
        path=tuple(run.path) if scored else (),
    )


def _resumed(run: Run) -> Resumed | None:
    """The interruptions, and what the attempts before them took that is in the record's cost."""
    steps, seconds = (run.execution.resumed or Resumed()).steps, sum(run.meter.carried.seconds.values())
    return Resumed(steps, seconds) if steps or seconds else None


def _peak_flops(run: Run) -> float | None:
    """FLOP/s that the machine's matrix products reach in the precision of the last stage; None where none trained."""
    if not run.accounts.flops:
        return None
    precision = "bfloat16" if run.execution.stages[-1].bf16 else "float32"
    return run.process.measurements.peak_flops(run.meter.device, precision, run.workspace.paths.machine)
