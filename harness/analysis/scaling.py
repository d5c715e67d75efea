"""How a loss falls with data, model size or steps: laws fitted to few points, with the uncertainty that this leaves.

All fits minimise a Huber loss of log(predicted) - log(seen), from many starting points (Hoffmann et al. 2022,
arXiv:2203.15556, section 3.3); every parameter is positive and is fitted as its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.analysis.statistics import Interval
from harness.errors import one_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

HUBER = 0.01
"""Residuals of the log loss beyond this (one per cent) count linearly."""
STARTS, REFINED = 256, 6
"""Starting points drawn, and how many of them, the nearest to the data, are refined."""
FLOOR, CEILING = np.log(1e-12), np.log(1e12)


@dataclass(frozen=True, kw_only=True)
class Law:
    """A formula and where to start looking for its parameters."""

    parameters: tuple[str, ...]
    inputs: int
    predict: Callable[[Mapping[str, Any], NDArray[np.float64]], NDArray[np.float64]]
    """Parameters by name and inputs of shape (inputs, n) to losses of shape (n,)."""
    start: Mapping[str, tuple[float, float]]
    """Range of starting points; of `E` as share of the smallest loss seen."""


LAWS = {
    "power": Law(
        parameters=("A", "alpha", "E"),
        inputs=1,
        predict=lambda p, x: p["A"] * x[0] ** -p["alpha"] + p["E"],
        start={"A": (0.1, 100), "alpha": (0.05, 1.5), "E": (0.01, 0.95)},
    ),
    "joint": Law(
        parameters=("A", "alpha", "beta", "E"),
        inputs=2,
        predict=lambda p, x: p["A"] * x[0] ** -p["alpha"] * x[1] ** -p["beta"] + p["E"],
        start={"A": (0.1, 1000), "alpha": (0.05, 1), "beta": (0.05, 1), "E": (0.01, 0.95)},
    ),
    "rectified": Law(
        parameters=("B", "D_l", "beta", "E"),
        inputs=1,
        predict=lambda p, x: p["B"] / (p["D_l"] + x[0] ** p["beta"]) + p["E"],
        start={"B": (1, 1e5), "D_l": (1, 1e5), "beta": (0.2, 1.2), "E": (0.01, 0.95)},
    ),
}
"""`power`: L = A x^-alpha + E. `joint`: L = A x^-alpha d^-beta + E, model size and data of fine-tuning (Zhang et al. 2024,
arXiv:2402.17193). `rectified`: L = B / (D_l + d^beta) + E, where D_l stands for what pretraining already taught (Lin et
al. 2024, arXiv:2402.02314)."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law."""

    law: str
    parameters: Mapping[str, float]
    rmsd: float
    """Root mean squared difference of log losses."""
    intervals: Mapping[str, Interval]
    """By parameter, from the bootstrap; empty when it was not asked for."""

    def predict(self, *inputs: ArrayLike) -> NDArray[np.float64]:
        """Losses at these inputs (one array for each of the law's inputs), shape (n,)."""
        return LAWS[self.law].predict(self.parameters, np.array(np.broadcast_arrays(*inputs), dtype=float))


def fit(law: str, inputs: ArrayLike, losses: ArrayLike, seed: int = 0, bootstraps: int = 0) -> Fit | None:
    """Fit a law to losses.

    Args:
        law: `power`, `joint` or `rectified`.
        inputs: Shape (n,), or (2, n) for `joint`; positive.
        losses: Shape (n,); positive.
        seed: Of starting points and bootstrap.
        bootstraps: Refits to resampled points for the intervals (percentile, 95%); 0 for none.

    Returns:
        None when there are no more points than parameters: such a fit would be perfect and mean nothing.

    Raises:
        ValueError: For an unknown law, shapes that do not match, or values that are not positive.
    """
    if law not in LAWS:
        raise ValueError(one_of("law", law, list(LAWS)))
    x, y = np.atleast_2d(np.asarray(inputs, dtype=float)), np.asarray(losses, dtype=float)
    if x.shape != (LAWS[law].inputs, len(y)) or not (np.all(x > 0) and np.all(y > 0)):
        raise ValueError(f"{law} takes positive inputs of shape ({LAWS[law].inputs}, {len(y)}), but got {x.shape}")
    if len(y) <= len(LAWS[law].parameters):
        return None
    rng = np.random.default_rng(seed)
    # The loss has many local minima, and a refinement costs far more than a look at a starting point.
    starts = [_start(LAWS[law], y, rng) for _ in range(STARTS)]
    starts.sort(key=lambda start: float(np.mean(np.abs(_residuals(start, LAWS[law], x, y)))))
    best = _best(LAWS[law], x, y, starts[:REFINED])
    samples = []
    for _ in range(bootstraps):
        rows = rng.integers(0, len(y), len(y))
        # A resample with too few different points fits perfectly and says nothing of the spread.
        if len(np.unique(rows)) > len(LAWS[law].parameters):
            samples.append(_best(LAWS[law], x[:, rows], y[rows], [best]))
    residuals = _residuals(best, LAWS[law], x, y)
    names = LAWS[law].parameters
    values = dict(zip(names, map(float, np.exp(best)), strict=True))
    return Fit(
        law=law,
        parameters=values,
        rmsd=float(np.sqrt(np.mean(residuals**2))),
        intervals=_intervals(names, values, samples, len(y)),
    )


def _start(law: Law, y: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Logarithms of a random starting point."""
    values = [np.exp(rng.uniform(*np.log(law.start[name]))) for name in law.parameters]
    # The floor E of a loss lies below every loss seen.
    values[law.parameters.index("E")] *= y.min()
    start: NDArray[np.float64] = np.log(values)
    return start


def _best(
    law: Law, x: NDArray[np.float64], y: NDArray[np.float64], starts: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    from scipy.optimize import least_squares

    results = [
        least_squares(
            _residuals,
            start,
            args=(law, x, y),
            bounds=(FLOOR, CEILING),
            x_scale="jac",
            loss="huber",
            f_scale=HUBER,
            max_nfev=200,
        )
        for start in starts
    ]
    solution: NDArray[np.float64] = min(results, key=lambda result: float(result.cost)).x
    return solution


def _residuals(
    logs: NDArray[np.float64], law: Law, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        predicted = law.predict(dict(zip(law.parameters, np.exp(logs), strict=True)), x)
    # Far from the minimum a law over- or underflows; the clip keeps its logarithm, and so the residual, finite.
    residuals: NDArray[np.float64] = np.log(np.clip(predicted, 1e-30, 1e30)) - np.log(y)
    return residuals


def _intervals(
    names: tuple[str, ...], values: Mapping[str, float], samples: list[NDArray[np.float64]], n: int
) -> dict[str, Interval]:
    if not samples:
        return {}
    low, high = np.quantile(np.exp(samples), [0.025, 0.975], axis=0)
    return {
        name: Interval(mean=values[name], low=float(low[index]), high=float(high[index]), n=n)
        for index, name in enumerate(names)
    }
