"""Replay: rows of what the base knows already, mixed into the new ones."""

from __future__ import annotations

import random
import sys

from harness.errors import SpecError
from harness.plugins import Row, StageSetup
from harness.retention.base import Retention
from harness.space import Float


class Replay(Retention):
    """Mixes in corpus rows until they make up `replay_share` of the tokens of a pass over the data.

    Where the stage is shorter than one pass, the task's rows are cut first, so that the share holds for what is seen.
    """

    summary = "mixes rows of what the base knows into the training rows"
    paper = "share of 1 to 5%: Bethune et al. 2025, arXiv 2502.06042"
    space = {"replay_share": Float(0.0, 0.9, default=0.05)}

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The task's rows and corpus rows, task rows first: the trainer shuffles."""
        share = float(setup.params["replay_share"])
        if share == 0.0:
            return rows
        rng = random.Random(setup.seed)
        task, old = rng.sample(rows, len(rows)), setup.corpus()
        if not old:
            raise SpecError("replay needs rows of what the base model knows, but its corpus is empty: name another")
        old = rng.sample(old, len(old))
        task_lengths, old_lengths = _lengths(task, setup), _lengths(old, setup)
        seen = setup.steps * int(setup.params["batch_size"]) * int(setup.params["gradient_accumulation"])
        # r replayed rows among n with mean lengths a (task) and b (old): r b = share (r b + (n - r) a)
        a, b = sum(task_lengths) / len(task), sum(old_lengths) / len(old)
        row_share = share * a / (b - share * b + share * a)
        by_tokens = seen * int(setup.params["max_length"]) * (1 - share) / a  # a sequence holds as many rows as fit
        shown = by_tokens if setup.packed else seen * (1 - row_share)
        kept = min(len(task), max(1, round(shown)))
        budget = sum(task_lengths[:kept]) * share / (1 - share)
        chosen, total = _fill(old_lengths, budget)
        if len(chosen) > len(old):
            setup.note(f"replay repeats its {len(old)} corpus rows {len(chosen) / len(old):.1f} times")
        setup.note(f"replayed share of tokens: {total / (total + sum(task_lengths[:kept])):.4f}")
        return task[:kept] + [old[index] for index in chosen]


def _fill(lengths: list[int], budget: float) -> tuple[list[int], int]:
    """Indices of rows, in order and over again, whose summed length is as near to `budget` as whole rows come."""
    chosen: list[int] = []
    total = 0
    while True:
        length = lengths[len(chosen) % len(lengths)]
        if abs(total + length - budget) >= abs(total - budget):
            return chosen, total
        chosen.append(len(chosen) % len(lengths))
        total += length


def _lengths(rows: list[Row], setup: StageSetup) -> list[int]:
    """Tokens of each row as it will be trained on, the end token included."""
    texts = [row["prompt"] + row["completion"] for row in rows]
    limit = sys.maxsize if setup.packed else int(setup.params["max_length"])
    return [min(len(ids) + 1, limit) for ids in setup.tokenizer(texts)["input_ids"]]
