"""What a comparison says: in a terminal, to a program and on its page."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from harness.compare.judgement import compare
from harness.compare.page import render
from harness.compare.said import text, values
from tests.compare.made_up import model, right, skill

EVIL = "<script>alert('&')</script>"


@pytest.fixture(scope="module")
def lost():
    bits = np.full(400, 2.0)
    base = skill(right(300, 400), bits)
    base = replace(base, answers=tuple(replace(own, prompt=EVIL, right=EVIL, given=EVIL) for own in base.answers))
    return compare(model(f"base {EVIL}", one=base), [model("tuned", one=skill(right(200, 400), bits + 0.5))], 0.05)


def test_the_last_line_is_the_answer(lost):
    last = text(lost).splitlines()[-1]
    assert last.startswith("lost: tuned lost 1 of the 1 skill of base")
    assert "one (25 points lost)" in last


def test_a_program_reads_finite_values(lost):
    read = json.loads(json.dumps(values(lost), allow_nan=False))
    (own,) = read["models"]
    assert (read["exit_code"], own["status"]) == (6, "lost")
    (one,) = own["skills"]
    assert (one["lost"], one["items"], one["right_to_wrong"]) == (0.25, 400, 100)
    assert len(one["worst"]) == 5
    assert one["worst"][0]["base"] == {"given": EVIL, "value": 1.0, "bits": 2.0}


def test_the_page_loads_nothing_and_runs_nothing(lost):
    page = render(lost)
    assert EVIL not in page
    assert "&lt;script&gt;alert(" in page
    assert not re.search(r"<script|\ssrc=|href=\"http|url\(|@import", page)
    assert page == render(lost)


@pytest.mark.parametrize(
    ("count", "of", "said"),
    [
        (150, 200, "kept: t kept its only skill of b within 5 points"),
        (
            4,
            5,
            "cannot tell whether t lost anything of b: 0 of 1 skill kept; about 1,046 items each would tell for one",
        ),
        (50, 200, "one cannot fall, so choose a task that the base can do"),
    ],
)
def test_what_the_headline_says(count, of, said):
    same = skill(right(count, of))
    assert said in text(compare(model("b", one=same), [model("t", one=same)], 0.05)).splitlines()[-1]
