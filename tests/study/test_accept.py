"""What a study accepts: read strictly, and no part of what it runs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.study.accept import Limits, read_limits
from harness.study.spec import StudySpec, sentences
from tests.fabricate import study_spec


def with_accept(accept: object) -> StudySpec:
    return StudySpec.model_validate(study_spec().model_dump(mode="json") | {"accept": accept})


def test_units_by_hand() -> None:
    limits = read_limits({"forgetting": "5 points", "hours": 1.5, "memory": "16 GB"})
    assert limits == Limits(forgetting=0.05, seconds=5400.0, memory_bytes=16e9)
    assert read_limits({"memory": "2GiB"}) == Limits(memory_bytes=2**31)
    assert read_limits({"forgetting": "0.5 points"}) == Limits(forgetting=0.005)
    assert read_limits({"forgetting": "1 point"}).forgetting == 0.01
    assert read_limits({}).is_none
    assert read_limits({"hours": None}).is_none


@pytest.mark.parametrize(
    ("accept", "says"),
    [
        ({"forgetting": 5}, "forgetting must be 0 to 100 points of any skill, for example 5 points, but got 5"),
        ({"forgetting": "5 %"}, "but got '5 %'"),
        ({"forgetting": "-1 points"}, "but got '-1 points'"),
        ({"forgetting": "101 points"}, "but got '101 points'"),
        ({"forgetting": "nan points"}, "but got 'nan points'"),
        ({"hours": "2"}, "hours must be a number of hours above 0"),
        ({"hours": True}, "but got True"),
        ({"hours": 0}, "but got 0"),
        ({"memory": 16}, "memory must be above 0 with a unit (kB, MB, GB"),
        ({"memory": "16 gb"}, "but got '16 gb'"),
        ({"memory": "0 GB"}, "but got '0 GB'"),
        ({"money": 5}, "accept.money"),
        ("5 points", "accept"),
    ],
)
def test_what_cannot_be_meant_is_refused(accept: object, says: str) -> None:
    with pytest.raises(ValidationError) as error:
        with_accept(accept)
    text = sentences(error.value, StudySpec)
    assert says in text
    assert "\n" not in text


def test_no_trial_and_no_study_becomes_another_by_it() -> None:
    plain, limited = study_spec(), with_accept({"forgetting": "5 points"})
    assert limited.fingerprint == plain.fingerprint
    assert "accept" not in plain.model_dump(mode="json")  # kept as studies of before it are
    kept = limited.model_dump(mode="json")
    assert kept["accept"] == {"forgetting": "5 points", "hours": None, "memory": None}
    assert StudySpec.model_validate(kept) == limited
