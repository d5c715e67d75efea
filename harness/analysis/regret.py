"""Regret: what choosing one pipeline costs beside the best one known. Gain and forgetting are the database's views."""

from __future__ import annotations


def simple_regret(best: float, chosen: float) -> float:
    """Best known score minus the chosen pipeline's; 0 where the choice beats what was known.

    Args:
        best: Best score on record, higher = better.
        chosen: Score of the pipeline that was chosen, in the same unit and direction.
    """
    return max(0.0, best - chosen)


def normalized_regret(best: float, chosen: float, base: float) -> float | None:
    """Simple regret as a share of what was to be gained over the base.

    Args:
        best: Best score on record, higher = better.
        chosen: Score of the pipeline that was chosen.
        base: Score of the base model.

    Returns:
        At least 0; above 1 where the choice is worse than the base. None when nothing was to be gained (best <= base).
    """
    return simple_regret(best, chosen) / (best - base) if best > base else None
