"""Fewer rows: a part of the training rows, chosen at random or by length, perplexity or diversity."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from harness.axes.contract import StageSetup
from harness.curation._likelihoods import answer_nats
from harness.curation.base import Curation
from harness.space import Choice, Float
from harness.tasks.training_rows import Row


def _random(rows: Sequence[Row], setup: StageSetup) -> list[float]:
    rng = random.Random(setup.seed)
    return [rng.random() for _ in rows]


def _length(rows: Sequence[Row], setup: StageSetup) -> list[float]:
    return [float(len(row.completion)) for row in rows]


def _shortness(rows: Sequence[Row], setup: StageSetup) -> list[float]:
    return [-length for length in _length(rows, setup)]


# A row whose answer has no token to learn is never among the best, by either order.
def _surprise(rows: Sequence[Row], setup: StageSetup) -> list[float]:
    return [-math.inf if math.isnan(nats) else nats for nats in answer_nats(rows, setup)]


def _familiarity(rows: Sequence[Row], setup: StageSetup) -> list[float]:
    return [-math.inf if math.isnan(nats) else -nats for nats in answer_nats(rows, setup)]


ORDERS: Mapping[str, Callable[[Sequence[Row], StageSetup], list[float]]] = {
    "random": _random,
    "longest": _length,
    "shortest": _shortness,
    "highest_perplexity": _surprise,
    "lowest_perplexity": _familiarity,
}
"""What the best rows have most of."""


class Subset(Curation):
    """The `subset_share` of the rows that are best by `subset_by`; they keep their order.

    `longest` answers (Zhao et al. 2024, 2402.04833), the base's `lowest_perplexity` or `highest_perplexity` of the answer
    (Marion et al. 2023, 2309.04564), `diverse` (each next row is the one that adds most new pairs of words), or `random`.
    """

    summary = "a part of the rows, by chance, length, perplexity or diversity"
    paper = "Zhou et al. 2023 (LIMA), arXiv 2305.11206"
    space = {
        "subset_share": Float(0.001, 0.95, default=0.1, log=True),
        "subset_by": Choice((*ORDERS, "diverse"), default="random"),
    }

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The best rows, at least one, in their old order."""
        count, by = max(1, round(setup.params.number("subset_share") * len(rows))), setup.params.text("subset_by")
        if by == "diverse":
            kept = _diverse(rows, count)
        else:
            scores = ORDERS[by](rows, setup)
            kept = sorted(range(len(rows)), key=lambda index: -scores[index])[:count]
        setup.note(f"{count} of {len(rows)} rows were kept ({by})")
        return [rows[index] for index in sorted(kept)]


def _diverse(rows: Sequence[Row], count: int) -> list[int]:
    """Greedily the rows that add most pairs of words."""
    # What a row adds only shrinks as others are chosen. Its last count is therefore a bound, and a row that still leads the
    # queue after a recount is the best (lazy greedy, Minoux 1978).
    pairs = []
    for row in rows:
        words = row.text.split()
        pairs.append(set(pairwise(words)) or {(word, "") for word in words})
    queue = [(-len(own), index) for index, own in enumerate(pairs)]
    heapq.heapify(queue)
    seen: set[tuple[str, str]] = set()
    chosen: list[int] = []
    while len(chosen) < count:
        _, index = heapq.heappop(queue)
        gain = len(pairs[index] - seen)
        if queue and (-gain, index) > queue[0]:
            heapq.heappush(queue, (-gain, index))
            continue
        chosen.append(index)
        seen |= pairs[index]
    return chosen
