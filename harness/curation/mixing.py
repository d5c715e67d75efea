"""Mixing: rows of other tasks beside the task's own, in given shares."""

from __future__ import annotations

import random

from harness.axes.contract import Situation, StageSetup
from harness.curation.base import Curation
from harness.space import Float, Text
from harness.tasks.training_rows import Row


class Mixing(Curation):
    """All of the task's rows, and so many of the pools' that those make up `pool_share` of all rows.

    The pools' weights share out their part; a pool that has too few rows repeats them, which is noted.
    """

    summary = "rows of other tasks mixed in"
    paper = "Wang et al. 2023, arXiv 2312.10793"
    requires = "other tasks to mix in"
    space = {"pools": Text(names="tasks"), "pool_share": Float(0.01, 0.95, default=0.5)}

    def skip(self, situation: Situation) -> str | None:
        """The parameter `pools` must name a task."""
        if not situation.params.names("pools", "a task"):
            return "mixing needs tasks to mix in: name them in pools, for example pools: trec=2, my_task"
        return None

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The task's rows, then those of the pools; training shuffles them."""
        share = setup.params.number("pool_share")
        pools = setup.params.names("pools")
        total = sum(pool.weight for pool in pools)
        mixed = list(rows)
        for number, pool in enumerate(pools):
            own = setup.rows_of(pool)
            # The task's rows make up 1 - share of all rows, so all rows are as many as theirs / (1 - share).
            count = round(len(rows) * share / (1 - share) * pool.weight / total)
            order = random.Random(f"{setup.seed} {number}").sample(range(len(own)), len(own))
            mixed += [own[order[place % len(own)]] for place in range(count)]
            repeats = f", each {count / len(own):.1f} times" if count > len(own) else ""
            setup.note(f"mixed in {count} rows of {pool.name}{repeats}")
        return mixed
