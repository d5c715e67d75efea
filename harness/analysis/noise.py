"""How far scores would move with other seeds and with other test items, judged by the few of both that there are.

The model of one task: score = family + seed of the run + item + family x item + rest. For families A and B with r_A and r_B
runs on the same n items, the squared error of their difference is

    s_A / r_A + s_B / r_B + (variance over items of the difference of their mean scores) / n

where s is the variance of a run's mean over seeds, less what finitely many items put into it (rest / n). The last term holds
the family x item interaction and the rest already. Degrees of freedom are Satterthwaite's (1946, "An approximate distribution
of estimates of variance components", Biometrics Bulletin 2:110-114).

Few runs say little of s, so that it is moderated (Smyth 2004, "Linear models and empirical Bayes methods for assessing
differential expression", Statistical Applications in Genetics and Molecular Biology 3:3): variances of a task are drawn to
their pool, by a weight that follows from their scatter over the study. A pool that happens to be tiny is raised by the other
tasks' pools, relative to the variance of their items. A family's variance is never put below its own estimate, so that quiet
families do not hide one that scatters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

PRIOR_WEIGHT = 4.0
"""How many degrees of freedom the prior of the scatter of variances weighs as."""
PRIOR_SCATTER = 0.65
"""Prior variance of the logarithm of families' seed variances."""
BORROWED = 2.0
"""How many degrees of freedom the other tasks weigh as in the pool of one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """What was measured on one task; all arrays are by family, in the order of `names`."""

    names: tuple[str, ...]
    means: Numbers
    """Mean score over runs and items."""
    covariance: Numbers
    """Shape (families, families): over items, of the families' mean scores."""
    runs: NDArray[np.int64]
    free: NDArray[np.bool_]
    """Whether other seeds would give other runs; not so of a finished model."""
    variances: Numbers
    """Over seeds, of a run's mean; 0 for one run."""
    rest: Numbers
    """Variance of what neither run nor item explains; 0 for one run."""
    items: int
    binary: bool
    """Whether every value is 0 or 1."""

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Degrees of freedom of `variances`."""
        return np.where(self.free, self.runs - 1, 0)


@dataclass(frozen=True, eq=False, kw_only=True)
class SeedNoise:
    """Moderated variances of one run's mean over seeds, by family."""

    variances: Numbers
    degrees: Numbers
    total: float
    """Degrees of freedom of all runs of the task together: no sum of these variances has more."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Errors:
    """Squared errors with their degrees of freedom."""

    pairs: Numbers
    """Shape (families, families): of differences."""
    pair_degrees: Numbers
    levels: Numbers
    """Shape (families,): of mean scores."""
    level_degrees: Numbers


def sample_of(scores: Mapping[str, Numbers], fixed: Collection[str] = ()) -> Sample:
    """Means and variances of one task.

    Args:
        scores: By family, shape (runs, items), at least two items, the same in all families; missing runs are left out.
        fixed: Families that are one finished model each, such as the base.
    """
    runs = [np.asarray(own, dtype=float) for own in scores.values()]
    by_item = np.array([own.mean(axis=0) for own in runs])
    return Sample(
        names=tuple(scores),
        means=by_item.mean(axis=1),
        covariance=np.atleast_2d(np.cov(by_item)),
        runs=np.array([len(own) for own in runs]),
        free=np.array([name not in fixed for name in scores]),
        variances=np.array([own.mean(axis=1).var(ddof=1) if len(own) > 1 else 0.0 for own in runs]),
        rest=np.array([_rest(own) for own in runs]),
        items=by_item.shape[1],
        binary=all(bool(np.isin(own, (0.0, 1.0)).all()) for own in runs),
    )


def _rest(own: Numbers) -> float:
    """Residual variance of a two-way table of runs and items without interaction."""
    if len(own) < 2:
        return 0.0
    left = own - own.mean(axis=1, keepdims=True) - own.mean(axis=0) + own.mean()
    return float((left**2).sum() / ((own.shape[0] - 1) * (own.shape[1] - 1)))


def seed_noise(samples: Sequence[Sample]) -> list[SeedNoise | None]:
    """Moderated variances over seeds of every task of a study.

    Returns:
        None for a task where seeds matter and no family has two runs, so that nothing is known of them.
    """
    known = [sample for sample in samples if sample.degrees.sum() > 0]
    moderated = iter(_moderated(known) if known else ())
    return [
        next(moderated) if sample.degrees.sum() > 0 else None if sample.free.any() else _none(sample)
        for sample in samples
    ]


def _none(sample: Sample) -> SeedNoise:
    return SeedNoise(variances=np.zeros(len(sample.names)), degrees=np.ones(len(sample.names)), total=1.0)


def _moderated(samples: Sequence[Sample]) -> list[SeedNoise]:
    totals = np.array([float(sample.degrees.sum()) for sample in samples])
    pools = np.array([(s.degrees * s.variances).sum() for s in samples]) / totals
    scales = np.array([max(np.diag(s.covariance)[s.free].mean(), 1e-12) for s in samples])
    relative = float(np.average(pools / scales, weights=totals))
    prior = _prior_degrees(samples, pools)
    pools = np.maximum(pools, (BORROWED * relative * scales + totals * pools) / (BORROWED + totals))
    result = []
    for sample, pool, total in zip(samples, pools, totals, strict=True):
        d, own = sample.degrees, sample.variances
        variances = np.where(sample.free, np.maximum(own, (prior * pool + d * own) / (prior + d)), 0.0)
        degrees = np.clip(np.minimum(prior + d, total), 1.0, None)
        result.append(SeedNoise(variances=variances, degrees=degrees, total=float(total)))
    return result


def _prior_degrees(samples: Sequence[Sample], pools: Numbers) -> float:
    """Degrees of freedom that the pool weighs as (Smyth 2004, section 6.2), with a prior on the scatter itself."""
    from scipy.special import digamma, polygamma

    excess, degrees = 0.0, 0
    for sample, pool in zip(samples, pools, strict=True):
        several = sample.degrees > 0
        if pool > 0 and several.sum() > 1:
            half = sample.degrees[several] / 2
            # the logarithm of a sample variance has this expectation and the variance below, whatever the true one
            logs = np.log(np.maximum(sample.variances[several], 1e-3 * pool)) - digamma(half) + np.log(half)
            expected = polygamma(1, half).sum() * (1 - 1 / several.sum())
            excess += float(((logs - logs.mean()) ** 2).sum() - expected)
            degrees += int(several.sum()) - 1
    scatter = max((excess + PRIOR_WEIGHT * PRIOR_SCATTER) / (degrees + PRIOR_WEIGHT), 0.02)
    halves, scatters = _trigamma()
    return float(2 * halves[np.abs(scatters - scatter).argmin()])


@lru_cache(maxsize=1)
def _trigamma() -> tuple[Numbers, Numbers]:
    from scipy.special import polygamma

    halves = np.exp(np.linspace(-4, 6, 4000))
    return halves, np.asarray(polygamma(1, halves))


def errors_of(sample: Sample, noise: SeedNoise) -> Errors:
    """Squared errors of all differences and levels of one task."""
    n, var = sample.items, np.diag(sample.covariance)
    seed = np.where(sample.free, np.maximum(noise.variances - sample.rest / n, 0.0) / sample.runs, 0.0)
    raw = np.where(sample.free, noise.variances / sample.runs, 0.0)
    item = np.maximum(var[:, None] + var - 2 * sample.covariance, 0.0)
    if sample.binary:
        # as Agresti and Coull add pseudo-observations to a share: two items, in each of which one run answers differently
        item = (item * (n - 1) + 2 / sample.runs.max() ** 2) / (n + 1)
    item = item / n
    own = raw**2 / noise.degrees
    scatter = np.maximum(own[:, None] + own, (raw[:, None] + raw) ** 2 / noise.total)
    pairs, levels = seed[:, None] + seed + item, seed + var / n
    return Errors(
        pairs=pairs,
        pair_degrees=_satterthwaite(pairs, scatter + item**2 / (n - 1), n),
        levels=levels,
        level_degrees=_satterthwaite(levels, own + (var / n) ** 2 / (n - 1), n),
    )


def _satterthwaite(square: Numbers, scatter: Numbers, items: int) -> Numbers:
    return np.where(scatter > 0, np.maximum(square**2 / np.where(scatter > 0, scatter, 1.0), 1.0), items - 1.0)
