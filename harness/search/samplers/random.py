"""Independent draws: the sampler that everything else must beat."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from harness.search.samplers.base import Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class Random(Sampler):
    """Random search."""

    summary = "independent random draws"
    paper = "Bergstra & Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html"
    independent = math.inf

    def create(self, seed: int) -> BaseSampler:
        """Optuna's `RandomSampler`."""
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)
