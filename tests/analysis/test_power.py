"""What a plan promises is what the procedure finds."""

from __future__ import annotations

import numpy as np

from harness.analysis.comparison import Question
from harness.analysis.power import INTERACTION, REST, detectable
from harness.analysis.verdict import judge


def test_the_lead_is_found_as_often_as_promised() -> None:
    families, runs, items, seed_sd = 3, 5, 200, 0.02
    lead = detectable(families=families, runs=runs, items=items, seed_sd=seed_sd)
    rng, found, studies = np.random.default_rng(3), 0, 80
    for _ in range(studies):
        scores = {
            str(f): lead * (f == 0)
            + rng.normal(0, seed_sd, (runs, 1))
            + rng.normal(0, (INTERACTION / 2) ** 0.5, (1, items))
            + rng.normal(0, REST**0.5, (runs, items))
            for f in range(families)
        }
        found += judge([Question(scores=scores)])[0].use == "0"
    # both sides are simulated: the standard error is about .045 of the share and as much of the lead's
    assert 0.65 <= found / studies <= 0.94


def test_more_seeds_or_items_find_less_and_more_tasks_ask_for_more() -> None:
    few = detectable(families=3, runs=3, items=200, seed_sd=0.02)
    assert detectable(families=3, runs=6, items=200, seed_sd=0.02) < few
    assert detectable(families=3, runs=3, items=800, seed_sd=0.02) < few
    assert detectable(families=3, runs=3, items=200, seed_sd=0.02, tasks=4) > few
    # a task more asks for a stricter test, however many there are
    assert detectable(families=3, runs=3, items=200, seed_sd=0.02, tasks=40) > detectable(
        families=3, runs=3, items=200, seed_sd=0.02, tasks=10
    )
    assert detectable(families=3, runs=1, items=200, seed_sd=0.02) is None
