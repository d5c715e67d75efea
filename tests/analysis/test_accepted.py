"""What is accepted, by hand."""

from __future__ import annotations

from harness.analysis.accepted import Needs, accepted
from harness.study.accept import Limits

NEEDS = {
    "full": Needs(forgetting=0.47, seconds=100.0, memory_bytes=8e9),
    "lora": Needs(forgetting=0.02, seconds=300.0, memory_bytes=2e9),
    "unknown": Needs(forgetting=None, seconds=50.0, memory_bytes=1e9),
}


def test_without_limits_everything_is_accepted() -> None:
    found = accepted(NEEDS, Limits())
    assert found.within == tuple(NEEDS)
    assert found.refused == {}


def test_what_forgets_more_and_what_nobody_measured_are_refused() -> None:
    found = accepted(NEEDS, Limits(forgetting=0.05))
    assert found.within == ("lora",)
    assert found.refused == {
        "full": ("forgets more than is accepted",),
        "unknown": ("nobody measured what it forgets",),
    }


def test_every_broken_limit_is_named() -> None:
    found = accepted(NEEDS, Limits(forgetting=0.01, seconds=60.0, memory_bytes=1e9))
    assert found.within == ()
    assert found.refused["full"] == (
        "forgets more than is accepted",
        "trains longer than is accepted",
        "takes more memory than is accepted",
    )
