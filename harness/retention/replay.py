"""Replay: rows of what the base knows already, mixed into the new ones."""

from __future__ import annotations

import random

from harness.axes.contract import Situation, StageSetup
from harness.axes.encoding import documents, encoded, encoder
from harness.errors import SpecError
from harness.retention.base import Retention
from harness.space import Float, Text
from harness.tasks.training_rows import Row


class Replay(Retention):
    """Mixes in old rows until they make up `replay_share` of the tokens of a pass over the data.

    They are texts of the base's corpus, or the training rows of the tasks that `replay_from` names, each of which gets
    its weight's part of the tokens. Where the stage is shorter than one pass, the task's rows are cut first, so that the
    share holds for what is seen.
    """

    summary = "mixes rows of what the base knows into the training rows"
    paper = "share of 1 to 5%: Bethune et al. 2025, arXiv 2502.06042"
    space = {"replay_share": Float(0.0, 0.9, default=0.05), "replay_from": Text(names="tasks")}

    def skip(self, situation: Situation) -> str | None:
        """Texts of a corpus have neither prompts to answer nor rejected answers."""
        objective, params = situation.beside.get("objective"), situation.params
        if objective is None or params.number("replay_share", 1.0) == 0.0 or params.names("replay_from", "a task"):
            return None
        if "rejected" in getattr(objective, "needs", ()) or getattr(objective, "samples", False):
            return "its retention replays plain texts, which its objective cannot learn from: name tasks in replay_from"
        return None

    def rows(self, rows: list[Row], setup: StageSetup) -> list[Row]:
        """The task's rows and corpus rows, task rows first: the trainer shuffles."""
        share = setup.params.number("replay_share")
        if share == 0.0:
            return rows
        rng = random.Random(setup.seed)
        # Shuffled here, since what is cut off or repeated below must be a random part.
        task, sources = rng.sample(rows, len(rows)), _sources(setup)
        sources = [(rng.sample(old, len(old)), weight) for old, weight in sources]
        task_lengths, old_lengths = _lengths(task, setup), [_lengths(old, setup) for old, _ in sources]
        # r replayed rows among n with mean lengths a (task) and b (old): r b = share (r b + (n - r) a)
        a, b = sum(task_lengths) / len(task), _mean_length(old_lengths, [weight for _, weight in sources])
        row_share = share * a / (b - share * b + share * a)
        seen = setup.steps * setup.params.integer("batch_size") * setup.params.integer("gradient_accumulation")
        by_tokens = seen * setup.params.integer("max_length") * (1 - share) / a  # a sequence holds as many rows as fit
        shown = by_tokens if setup.packed else seen * (1 - row_share)
        count = min(len(task), max(1, round(shown)))
        # In tokens: rows of the corpus may be many times as long as the task's.
        budget = sum(task_lengths[:count]) * share / (1 - share)
        replayed: list[Row] = []
        total = 0
        for (old, weight), lengths in zip(sources, old_lengths, strict=True):
            chosen, tokens = _fill(lengths, budget * weight)
            if len(chosen) > len(old):
                setup.note(f"replay repeats its {len(old)} corpus rows {len(chosen) / len(old):.1f} times")
            replayed += [old[index] for index in chosen]
            total += tokens
        setup.note(f"replayed share of tokens: {total / (total + sum(task_lengths[:count])):.4f}")
        return task[:count] + replayed


def _sources(setup: StageSetup) -> list[tuple[list[Row], float]]:
    """Rows to replay, and each kind's part of the replayed tokens."""
    tasks = setup.params.names("replay_from")
    if not tasks:
        if not (old := setup.corpus()):
            raise SpecError("replay needs rows of what the base model knows, but its corpus is empty: name another")
        return [(old, 1.0)]
    total = sum(task.weight for task in tasks)
    return [(setup.rows_of(task), task.weight / total) for task in tasks]


def _mean_length(lengths: list[list[int]], weights: list[float]) -> float:
    """Tokens per row of a mixture in which each kind has its part of the tokens."""
    return 1 / sum(weight * len(kind) / sum(kind) for kind, weight in zip(lengths, weights, strict=True))


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
    if setup.packed:
        return [len(ids) for ids in documents([row.text for row in rows], setup)]
    limit = setup.params.integer("max_length")
    return [min(len(sequence.input_ids), limit) for sequence in encoded(rows, encoder(setup), setup.generates)]
