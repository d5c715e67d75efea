"""Tree-structured Parzen estimator: draws where good trials were dense and bad ones were not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.search.samplers.base import Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_STARTUP = 4
"""Random trials before the model is believed. Optuna's 10 would leave most fine-tuning budgets with random search."""


class Tpe(Sampler):
    """Multivariate TPE; trials still running count as bad, so that workers spread out."""

    summary = "tree-structured Parzen estimator, multivariate, with constant liar"
    paper = "Watanabe 2023, arXiv:2304.11127"
    independent = _STARTUP

    def create(self, seed: int) -> BaseSampler:
        """Optuna's `TPESampler`."""
        from optuna.samplers import TPESampler

        return TPESampler(seed=seed, n_startup_trials=_STARTUP, multivariate=True, constant_liar=True)
