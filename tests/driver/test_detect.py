"""What a plan says of the smallest study that would decide: its bill and its words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.driver.detect import Detectable, Enough, _Bill, detectable_on
from harness.driver.experiment import TaskInfo
from harness.metrics.base import SHARE
from harness.records.trial import TaskRef
from tests.driver import standin

TASK = TaskInfo(ref=TaskRef("one", "f"), higher_is_better=True, scale=SHARE, items={"test": (10, 30)})


def test_a_bill_is_a_line_through_the_fewest_and_the_most_items_that_there_are() -> None:
    """A run takes 10 s and 2 s for each item: three runs of five seeds on 100 items take 3 * 5 * 210 s."""
    bill = _Bill(TASK, lambda task, limit: 10 + 2 * task.scored("test", limit), 3)
    assert bill.seconds(5, 100) == pytest.approx(3150)
    assert bill.seconds(5, None) == pytest.approx(150)


def test_a_task_of_one_item_has_no_price_by_item() -> None:
    bill = _Bill(replace(TASK, items={"test": (1,)}), lambda task, limit: 7.0, 1)
    assert bill.seconds(2, 50) == pytest.approx(14)


@pytest.mark.parametrize(
    ("ways", "says"),
    [
        (
            (Enough(seeds=7, items=900, seconds=70), Enough(seeds=20, items=200, seconds=300), None),
            "would take 7 seeds and 900 test items (70 s); seeds alone 20 seeds and 200 test items (5.0 min); items alone do not",
        ),
        (
            (Enough(seeds=5, items=950, seconds=60),) * 2 + (Enough(seeds=5, items=950, seconds=50),),
            "cheaper by items alone 5 seeds and 950 test items (50 s); seeds alone 5 seeds",
        ),
        (
            (Enough(seeds=9, items=5000, seconds=60), None, None),
            "(60 s), more items than the 1,000 that there are; seeds alone do not; items alone do not",
        ),
        ((None, None, None), "would take more seeds or items than anybody has"),
    ],
)
def test_what_would_find_the_smallest_difference_is_said_in_points(ways: tuple[Enough | None, ...], says: str) -> None:
    text = Detectable(
        task="one",
        difference=0.0853,
        width=1.0,
        basis="5 seeds",
        in_points=True,
        smallest=0.02,
        present=1000,
        enough=ways[0],
        more_seeds=ways[1],
        more_items=ways[2],
    ).text()
    assert text.startswith("8.5 points or more (5 seeds); 2.0 points, the smallest that matters, would take ")
    assert says in text


def test_the_way_that_is_named_is_the_cheapest_and_uses_no_more_items_than_there_are(tmp_path: object) -> None:
    spec = standin.study(confirm={"finalists": 2, "seeds": 3, "limit": 200}, tasks=["one"], smallest_difference=5.0)
    experiment = standin.experiment(spec, standin.site(tmp_path))
    task = replace(experiment.tasks[0], items={"test": (1500,)})
    experiment = replace(experiment, tasks=(task,))
    [cheap] = detectable_on(experiment, lambda task, limit: 60.0)
    assert cheap.smallest == pytest.approx(0.05)
    assert cheap.enough.items <= cheap.present == 1500
    assert cheap.enough.seeds < cheap.more_seeds.seeds
    [dear] = detectable_on(experiment, lambda task, limit: float(task.scored("test", limit)))
    assert dear.enough.seeds > cheap.enough.seeds
    assert dear.enough.seconds <= dear.more_seeds.seconds
