"""Which records `--refresh` has made anew: those that another version or their site may be to blame for."""

from importlib.metadata import version

import pytest

from harness import __version__
from harness.driver.loop import doubtful
from harness.records.trial import ModelRef, Pipeline, Provenance, Stage, TaskRef, TrialConfig, TrialResult, TrialStatus

CONFIG = TrialConfig(
    pipeline=Pipeline(ModelRef("base", "r"), (Stage(method="lora"),)), task=TaskRef("task", "f"), steps=10
)


def record(status="complete", harness=__version__, **versions):
    return TrialResult(
        config=CONFIG, status=TrialStatus(status), provenance=Provenance(harness_version=harness, versions=versions)
    )


@pytest.mark.parametrize(
    ("status", "again"),
    [
        ("complete", False),
        ("pruned", False),
        ("diverged", False),  # its own doing: it would diverge again
        ("out_of_memory", True),
        ("timed_out", True),
        ("crashed", True),
        ("preempted", True),
    ],
)
def test_a_trial_runs_again_where_its_site_may_be_to_blame(status, again):
    assert doubtful(record(status)) is again


def test_a_record_of_other_versions_is_made_anew():
    assert doubtful(record(harness="0.0.1"))
    assert doubtful(record(numpy="0.1"))
    assert not doubtful(record(numpy=version("numpy")))
    assert not doubtful(record(no_such_library="1"))  # nothing here says otherwise
