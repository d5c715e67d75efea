"""Reasons that several curations have for refusing a stage."""

from __future__ import annotations

from harness.axes.contract import Situation


def without_token_loss(situation: Situation) -> str | None:
    """Why loss cannot be taken off single tokens: the objective's is none on tokens."""
    objective = situation.beside.get("objective")
    if objective is None or getattr(objective, "supervises_tokens", False):
        return None
    return "its curation chooses tokens, but its objective has no loss on single tokens: use objective sft"


def packed(situation: Situation) -> str | None:
    """Why completions cannot be told apart: the objective joins rows into long sequences."""
    objective = situation.beside.get("objective")
    if objective is None or not getattr(objective, "packs", False):
        return None
    return "its curation looks at the beginning of each answer, but its objective joins rows: use objective sft"


def unmet(situation: Situation, gives: tuple[str, ...] = ()) -> str | None:
    """Why rows that a curation makes from prompts and answers are not enough: the objective needs more columns."""
    objective = situation.beside.get("objective")
    needed = getattr(objective, "needs", ())
    missing = [name for name in needed if name not in ("prompt", "completion", *gives)]
    if not missing:
        return None
    return f"its curation makes rows without {' and '.join(missing)}, which its objective needs: use objective sft"


def without_answers(situation: Situation) -> str | None:
    """Why there are no answers to work with: the task is plain text."""
    if situation.task.output_type != "loglikelihood_rolling":
        return None
    return "its curation needs prompts with answers, but the task is plain text"


def first_reason(*reasons: str | None) -> str | None:
    """The first that is one."""
    return next((reason for reason in reasons if reason), None)
