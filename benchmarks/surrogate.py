"""Which surrogate orders runs best that nobody here made? Ten folds by experiment, every plug-in beside the others.

Run: HARNESS_DATA=... python benchmarks/surrogate.py
Data: the public comparison of PEFT's methods (`runs/peft_method_comparison.csv`), through `harness import` with
`studies/imports/peft_comparison.yaml`, the database and the recommender's own features. Runs that repeat an experiment stand
in one fold. Spearman's correlation over all held-out runs, its standard error by resampling experiments; for intervals of 90 %,
how often they held and how wide they are, calibrated with methods in the place of tasks.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas
from scipy.stats import spearmanr

from harness.database.ingest import connect, ingest
from harness.foreign.take import take
from harness.plugins import load, names
from harness.recommend.conformal import Conformal
from harness.recommend.features import Encoder, Observation, describe, observations
from harness.recommend.lessons import lessons
from harness.records.paths import Paths

REPOSITORY = Path(__file__).parents[1]
FOLDS, COVERAGE = 10, 0.9
TARGETS = {
    "accuracy": lambda o: o.score,
    "memory": lambda o: o.memory_bytes and np.log(o.memory_bytes),
    "forgetting": lambda o: o.forgetting,
    "seconds": lambda o: o.seconds and np.log(o.seconds),
}


def imported(folder: Path) -> list[tuple[Observation, str]]:
    """The runs as the recommender sees them, each with the experiment that it repeats: its settings may differ a little."""
    paths = Paths(folder / "results", folder / "reports")
    table = Path(os.environ["HARNESS_DATA"]) / "runs" / "peft_method_comparison.csv"
    take(paths, table, REPOSITORY / "studies" / "imports" / "peft_comparison.yaml", "peft")
    ingest(paths)
    begun = pandas.read_csv(table, usecols=["created_at", "experiment"], low_memory=False)
    experiment = dict(
        zip(pandas.to_datetime(begun.created_at, utc=True, format="ISO8601"), begun.experiment, strict=True)
    )
    with connect(paths) as connection:
        times = dict(connection.execute("SELECT key, started_at FROM provenance").fetchall())
        seen = observations(paths, connection)
    return [(o, experiment[pandas.Timestamp(times[o.key], tz="UTC")]) for o in seen]


def measure(runs: list[tuple[Observation, str]], target: str, surrogate: str, seed: int) -> str:
    """One line: how well a surrogate orders runs that it has not seen."""
    seen, groups = zip(*[(o, group) for o, group in runs if TARGETS[target](o) is not None], strict=True)
    distinct = sorted(set(groups))
    fold_of = dict(zip(distinct, np.random.default_rng(seed).permutation(len(distinct)) % FOLDS, strict=True))
    fold = np.array([fold_of[group] for group in groups])
    y = np.array([TARGETS[target](o) for o in seen], dtype=float)
    mean, low, high = np.zeros((3, len(seen)))
    for k in range(FOLDS):
        train = lessons([o for o, own in zip(seen, fold, strict=True) if own != k])
        described = [describe(o.candidate) for o in train]
        encoder = Encoder.fit(described)
        model = Conformal(partial(load("recommend/surrogates", surrogate), encoder.columns), COVERAGE)
        values = np.array([TARGETS[target](o) for o in train], dtype=float)
        model.fit(encoder.transform(described), values, [o.candidate.stages[0].method for o in train])
        out = fold == k
        predicted = model.predict(
            encoder.transform([describe(o.candidate) for o, own in zip(seen, out, strict=True) if own])
        )
        mean[out], low[out], high[out] = predicted.mean, predicted.low, predicted.high
    order = spearmanr(mean, y).statistic if np.ptp(mean) else float("nan")
    scatter = _resampled(mean, y, groups)
    held, width = np.mean((low <= y) & (y <= high)), np.mean(high - low)
    return f"{order:7.3f} ± {scatter:.3f} {np.mean(np.abs(mean - y)):12.4f} {held:10.3f} {width:8.3f}"


def _resampled(mean: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> float:
    rng, own = np.random.default_rng(0), {g: [i for i, h in enumerate(groups) if h == g] for g in set(groups)}
    drawn = []
    for _ in range(200):
        rows = [i for g in rng.choice(sorted(own), len(own)) for i in own[str(g)]]
        drawn.append(spearmanr(mean[rows], y[rows]).statistic if np.ptp(mean[rows]) else np.nan)
    return float(np.nanstd(drawn))


def main() -> None:
    """Every surrogate on every target; a seed may be given."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with tempfile.TemporaryDirectory() as folder:
        seen = imported(Path(folder))
    print(f"{len(seen)} runs, {len({group for _, group in seen})} experiments; folds drawn with seed {seed}")
    for target in TARGETS:
        print(f"{target:11} {'':16} Spearman          mean error       held    width")
        for surrogate in names("recommend/surrogates"):
            print(f"{'':11} {surrogate:16} {measure(seen, target, surrogate, seed)}", flush=True)


if __name__ == "__main__":
    main()
