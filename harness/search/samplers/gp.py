"""Gaussian process with expected improvement: the most sample-efficient of the three, and the slowest to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.search.samplers.base import Sampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_STARTUP = 4
"""Random trials before the model is fitted."""


class Gp(Sampler):
    """Gaussian process; trials still running are taken at their predicted value."""

    summary = "Gaussian process with log expected improvement"
    paper = "Ament et al. 2023, arXiv:2310.20708"
    independent = _STARTUP

    def create(self, seed: int) -> BaseSampler:
        """Optuna's `GPSampler`, which loads torch and scipy."""
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=_STARTUP)
