"""Reasons for which several curations refuse a stage."""

from __future__ import annotations

from harness.axes.contract import Situation


def without_token_loss(situation: Situation) -> str | None:
    """The refusal of a curation that takes the loss off single tokens, beside an objective without a loss on tokens."""
    objective = situation.beside.get("objective")
    if objective is None or getattr(objective, "supervises_tokens", False):
        return None
    return "its curation chooses tokens, but its objective has no loss on single tokens: use objective sft"


def packed(situation: Situation) -> str | None:
    """The refusal of a curation that must know where each row begins, beside an objective that joins rows."""
    objective = situation.beside.get("objective")
    if objective is None or not getattr(objective, "packs", False):
        return None
    return "its curation looks at the beginning of each answer, but its objective joins rows: use objective sft"


def unmet(situation: Situation, gives: tuple[str, ...] = ()) -> str | None:
    """The refusal of a curation whose rows lack a column that the objective needs.

    Args:
        situation: The stage's.
        gives: Columns of the curation's rows beside `prompt` and `completion`.
    """
    objective = situation.beside.get("objective")
    needed = getattr(objective, "needs", ())
    missing = [name for name in needed if name not in ("prompt", "completion", *gives)]
    if not missing:
        return None
    return f"its curation makes rows without {' and '.join(missing)}, which its objective needs: use objective sft"


def without_answers(situation: Situation) -> str | None:
    """The refusal of a curation that works with answers, on a task of plain texts."""
    if situation.task.output_type != "loglikelihood_rolling":
        return None
    return "its curation needs prompts with answers, but the task is plain text"


def first_reason(*reasons: str | None) -> str | None:
    """The first of these that is not None."""
    return next((reason for reason in reasons if reason), None)
