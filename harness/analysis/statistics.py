"""What few seeds and finite test sets can and cannot say: intervals, paired tests, power.

Every function is deterministic: resampling takes a seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and its confidence interval; `low` and `high` are None where the data cannot give one."""

    mean: float
    low: float | None
    high: float | None
    n: int
    coverage: float = 0.95


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A paired comparison: mean difference (first minus second), its interval, and the p-value (two-sided)."""

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    """None where the data cannot give one."""
    n: int
    method: str


def mean_interval(values: Sequence[float], coverage: float = 0.95) -> Interval | None:
    """Mean over seeds with Student's t interval: mean +- t(n-1) s / sqrt(n).

    Student 1908, "The probable error of a mean", Biometrika 6:1-25.

    Args:
        values: One per seed, taken to be independent and about normal.
        coverage: Of the interval, in (0, 1).

    Returns:
        None for no value; without `low` and `high` for one value.
    """
    if not len(values):
        return None
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1, coverage=coverage)
    half = _t_quantile(coverage, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean=mean, low=mean - half, high=mean + half, n=n, coverage=coverage)


def bootstrap_interval(
    values: Sequence[float], coverage: float = 0.95, seed: int = 0, resamples: int = 5000
) -> Interval | None:
    """Mean with the bias-corrected accelerated bootstrap interval (Efron 1987, JASA 82:171-185).

    It is meant for items, not for a handful of seeds: below about 15 values it is too narrow.

    Args:
        values: One per item, taken to be independent.
        coverage: Of the interval, in (0, 1).
        seed: Of the resampling.
        resamples: Bootstrap samples drawn.

    Returns:
        As `mean_interval` for fewer than two values and where all values are equal.
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return mean_interval(values, coverage)
    from scipy.stats import norm

    data: NDArray[np.float64] = np.asarray(values, dtype=float)
    n, mean = len(data), float(data.mean())
    rng = np.random.default_rng(seed)
    means = np.array([data[rng.integers(0, n, n)].mean() for _ in range(resamples)])
    # Half of the ties count as below: with few distinct values many means are equal to the sample's.
    below = (np.sum(means < mean) + 0.5 * np.sum(means == mean)) / resamples
    # Where all means lie on one side the bias would be infinite; one sample's share bounds it.
    bias = norm.ppf(min(max(below, 1 / resamples), 1 - 1 / resamples))
    # For a mean the jackknife's acceleration is the skewness over 6 sqrt(n)
    centred = data - mean
    acceleration = np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5)
    z = bias + norm.ppf([(1 - coverage) / 2, (1 + coverage) / 2])
    low, high = np.quantile(means, norm.cdf(bias + z / (1 - acceleration * z)))
    return Interval(mean=mean, low=float(low), high=float(high), n=n, coverage=coverage)


def wilson_interval(successes: float, n: int, coverage: float = 0.95) -> Interval | None:
    """Score interval of a proportion, which stays inside [0, 1] (Wilson 1927, JASA 22:209-212).

    Args:
        successes: How many of the n succeeded; may be a sum of shares.
        n: How many were tried.
        coverage: Of the interval, in (0, 1).

    Returns:
        None for n = 0.
    """
    if n == 0:
        return None
    from scipy.stats import norm

    z, share = float(norm.ppf((1 + coverage) / 2)), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At a share of 0 or 1 the end equals the share up to rounding, which must not put the share outside.
    low, high = max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))
    return Interval(mean=share, low=low, high=high, n=n, coverage=coverage)


def paired_t_test(first: Sequence[float], second: Sequence[float], coverage: float = 0.95) -> PairedTest | None:
    """Student's t test of the differences between runs that share a seed (Student 1908, Biometrika 6:1-25).

    Differences that are all equal have no spread to judge them by: p is 1 when they are all 0, else None (undetermined),
    and there is no interval.

    Args:
        first: One score per seed.
        second: The scores that it is compared with, of the same seeds in the same order.
        coverage: Of the interval of the mean difference, in (0, 1).

    Returns:
        None for no pairs; p is None for one pair.

    Raises:
        ValueError: When the lengths differ.
    """
    differences = _differences(first, second)
    interval = mean_interval(list(differences), coverage)
    if interval is None:
        return None
    # Equal scores may differ by the rounding of a subtraction, and a spread of 1e-17 would give any p-value.
    if np.ptp(differences) <= 1e-12 * max(1.0, float(np.abs([first, second]).max())):
        p = 1.0 if len(differences) > 1 and not differences.any() else None
        return PairedTest(difference=interval.mean, low=None, high=None, p_value=p, n=interval.n, method="t")
    from scipy.stats import t

    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    p_value = float(2 * t.sf(abs(interval.mean) / error, len(differences) - 1))
    return PairedTest(
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        p_value=p_value,
        n=interval.n,
        method="t",
    )


def sign_flip_test(
    first: Sequence[float], second: Sequence[float], seed: int = 0, flips: int = 20_000
) -> PairedTest | None:
    """Permutation test of paired differences: under the null each difference could have had the other sign.

    Fisher 1935, "The Design of Experiments", section 21. Exact up to 14 pairs; with 5 seeds no p below 2/32 is
    possible. Beyond that Monte Carlo, counting the observed assignment (Phipson and Smyth 2010, arXiv:1603.05766).

    Args:
        first: One score per seed.
        second: The scores that it is compared with, of the same seeds in the same order.
        seed: Of the assignments drawn beyond 14 pairs.
        flips: How many are drawn then.

    Returns:
        Without an interval; None for no pairs.

    Raises:
        ValueError: When the lengths differ.
    """
    differences = _differences(first, second)
    n = len(differences)
    if n == 0:
        return None
    if n <= 14:
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=n)))
    else:
        random_signs = np.random.default_rng(seed).choice([1.0, -1.0], size=(flips, n))
        signs = np.vstack([np.ones(n), random_signs])
    observed = abs(differences.mean())
    # The tolerance makes assignments count as equal that are so in exact arithmetic.
    extreme = np.abs(signs @ differences / n) >= observed - 1e-12 * max(1.0, observed)
    difference, p_value = float(differences.mean()), float(extreme.mean())
    return PairedTest(difference=difference, low=None, high=None, p_value=p_value, n=n, method="sign flip")


def paired_item_test(first: ArrayLike, second: ArrayLike, coverage: float = 0.95, seed: int = 0) -> PairedTest | None:
    """Paired comparison over items, each scored by every seed: two-way cluster bootstrap of seeds and items.

    Items answered by one tuned model share its seed, so resampling items alone would pretend that seeds do not
    vary (the pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1:386-411). With few seeds it leans on
    the items; `paired_t_test` over seeds is the stricter of the two.

    Args:
        first: Item scores, shape (seeds, items), same seeds and items in both.
        second: Likewise.
        coverage: Of the interval.
        seed: Of the resampling.

    Returns:
        None when there is no seed or no item.

    Raises:
        ValueError: When the shapes differ or are not two-dimensional.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"both must have the same shape (seeds, items), but got {a.shape} and {b.shape}")
    if a.size == 0:
        return None
    differences, rng = a - b, np.random.default_rng(seed)
    seeds, items = differences.shape
    draws = 2000
    means = np.empty(draws)
    for index in range(draws):
        # Weights stand for the resampled rows and columns: no copy of the matrix is made.
        weights = np.bincount(rng.integers(0, seeds, seeds), minlength=seeds) / seeds
        columns = np.bincount(rng.integers(0, items, items), minlength=items) / items
        means[index] = weights @ differences @ columns
    low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
    tail = min(np.sum(means <= 0), np.sum(means >= 0))
    # One is added above and below: a p-value of 0 would claim more than the number of draws can show.
    p_value = min(1.0, 2 * (float(tail) + 1) / (draws + 1))
    return PairedTest(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        p_value=p_value,
        n=seeds,
        method="bootstrap",
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for having asked several questions (Holm 1979, Scand. J. Statistics 6:65-70); [] for none."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        # An adjusted p-value is never below that of a question with a smaller one.
        running = max(running, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, running)
    return adjusted


def minimal_detectable_difference(
    n_seeds: int, seed_sd: float, n_items: int | None = None, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Smallest true difference between two pipelines that a paired t test over seeds finds with this power.

    The test's statistic has a noncentral t distribution with n - 1 degrees of freedom and noncentrality
    difference / (sd of a difference / sqrt(n)) (Cohen 1988, "Statistical Power Analysis", section 2). A difference of
    two independent runs has variance 2 seed_sd^2; `n_items` adds 2 x 0.25 / n_items, the worst case of a proportion
    scored on that many items, which seeds share and therefore do not average away.

    Args:
        n_seeds: Pairs of runs.
        seed_sd: Standard deviation of one pipeline's score over seeds, in score units.
        n_items: Items of the test split; None leaves their share of the noise out.
        power: Chance to find the difference, in (0, 1).
        alpha: Level of the two-sided test.

    Returns:
        The difference in score units; None with fewer than two seeds.
    """
    if n_seeds < 2:
        return None
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm

    degrees = n_seeds - 1
    critical = _t_quantile(1 - alpha, degrees)
    # scipy's nct gives NaN for large shifts; this is its definition, a normal over a chi, averaged over the chi's
    # quantiles.
    thresholds = critical * np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, degrees) / degrees)

    def shortfall(shift: float) -> float:
        return float(np.mean(norm.cdf(shift - thresholds) + norm.cdf(-shift - thresholds))) - power

    noncentrality = float(brentq(shortfall, 1e-6, 10 * critical + 20))
    error = math.sqrt(2 * seed_sd**2 / n_seeds + (0.5 / n_items if n_items else 0.0))
    return noncentrality * error


def _t_quantile(coverage: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + coverage) / 2, degrees))


def _differences(first: Sequence[float], second: Sequence[float]) -> NDArray[np.float64]:
    if len(first) != len(second):
        raise ValueError(f"paired values must be as many in both, but got {len(first)} and {len(second)}")
    differences: NDArray[np.float64] = np.subtract(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    return differences
