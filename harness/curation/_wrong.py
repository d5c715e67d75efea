"""Wrong answers for rows: what a task knows to be wrong, or else other rows' answers."""

from __future__ import annotations

import random
from collections.abc import Sequence

from harness.errors import SpecError
from harness.tasks.training_rows import Row


def wrong_answers(rows: Sequence[Row], rng: random.Random) -> list[str]:
    """A wrong answer for every row: one of its wrong choices, its rejected answer, or another row's answer.

    Raises:
        SpecError: When all rows have the same answer.
    """
    answers = list(dict.fromkeys(row.completion for row in rows))
    if len(answers) < 2 and not all(row.wrong or row.rejected for row in rows):
        raise SpecError("wrong answers must be drawn from a task with different answers, but all of its are the same")
    return [_wrong(row, answers, rng) for row in rows]


def after(text: str, answer: str, row: Row) -> str:
    """A text with an answer behind it, as a user writes it: in a chat, no white space of a template parts them.

    Args:
        text: A question, or what leads to the answer.
        answer: As rows have it.
        row: Whose form it is.
    """
    return f"{text} {answer.strip()}" if row.turns else text + answer


def _wrong(row: Row, answers: Sequence[str], rng: random.Random) -> str:
    if row.wrong:
        return rng.choice(row.wrong)
    if row.rejected:
        return row.rejected
    # One of the others, each as likely: the row's own answer gives its place to the last one.
    answer = answers[rng.randrange(len(answers) - 1)]
    return answer if answer != row.completion else answers[-1]
