"""Seconds of attempts that left no record: what is charged, and to whom."""

from dataclasses import replace

import pytest

from harness.files import read_lines
from harness.records.causes import Cause
from harness.records.execution import Execution, Resumed
from harness.records.lost_work import append_lost, chances_used, lost_attempt, lost_seconds
from harness.records.results import write_result
from harness.records.trial import (
    CostRecord,
    ModelRef,
    Pipeline,
    Provenance,
    Stage,
    TaskRef,
    TrialConfig,
    TrialResult,
    TrialStatus,
)

FIRST = TrialConfig(
    pipeline=Pipeline(ModelRef("base", "r"), (Stage(method="lora"),)), task=TaskRef("task", "f"), steps=10
)
SECOND = replace(FIRST, seed=1)


@pytest.mark.parametrize(("held", "lost"), [(8.0, 3.0), (5.0, 0.0), (4.0, 0.0)])
def test_what_is_on_record_is_not_lost_and_nothing_is_lost_below_zero(paths, held, lost):
    """Of a pack of two one has a record of 2 + 3 seconds; its worker was held for 8, 5, or by a coarse clock 4."""
    write_result(
        paths,
        TrialResult(config=FIRST, status=TrialStatus.COMPLETE, cost=CostRecord(seconds={"load": 2.0, "train": 3.0})),
    )
    attempt = lost_attempt(paths, [FIRST, SECOND], held, Cause.DIED, "its worker died")
    assert list(attempt.configs) == [SECOND]
    assert attempt.seconds == lost


def test_lost_seconds_are_shared_and_add_up_over_attempts(paths):
    lines = paths.study("any").jobs
    append_lost(lines, lost_attempt(paths, [FIRST, SECOND], 6.0, Cause.DIED, "its worker died"))
    append_lost(lines, replace(lost_attempt(paths, [SECOND], 4.0, Cause.DIED, "its worker died"), blamed=True))
    assert lost_seconds(paths, "any") == {FIRST.key: 3.0, SECOND.key: 3.0 + 4.0}
    assert chances_used(lines) == {SECOND.key: 1}
    assert [line["of"] for line in read_lines(lines)] == [2, 2, 1]


def test_seconds_that_a_record_took_over_from_a_lost_attempt_are_not_lost(paths):
    """Ten seconds were lost with a worker; the trial went on from a checkpoint after seven of them."""
    append_lost(paths.study("any").jobs, lost_attempt(paths, [FIRST], 10.0, Cause.DIED, "its worker died"))
    provenance = Provenance(effective=Execution(resumed=Resumed((5,), 7.0)))
    cost = CostRecord(seconds={"train": 9.0})
    write_result(paths, TrialResult(config=FIRST, status=TrialStatus.COMPLETE, cost=cost, provenance=provenance))
    assert lost_seconds(paths, "any") == {FIRST.key: 3.0}
