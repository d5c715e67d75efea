from __future__ import annotations

import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from harness.plugins import load, names
from harness.recommend.conformal import Conformal, enough_tasks
from harness.recommend.surrogates.base import Surrogate

COLUMNS = ("stage0.method=a", "stage0.method=b", "stage0.param.learning_rate", "task.log_rows")


def data(n: int, seed: int = 0, task_effect: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """y = 1 for method a, 2 for b, minus (rate + 3)^2, plus a task effect and noise of sd .05; ten trials per task."""
    rng = np.random.default_rng(seed)
    task, method, rate = np.arange(n) // 10, rng.integers(0, 2, n), rng.uniform(-5, -1, n)
    x = np.column_stack([method == 0, method == 1, rate, rng.normal(size=task.max() + 1)[task]]).astype(float)
    effect = task_effect * rng.normal(size=task.max() + 1)[task]
    return x, 1 + method - (rate + 3) ** 2 + effect + rng.normal(0, 0.05, n), [f"t{t}" for t in task]


@pytest.fixture(params=names("recommend/surrogates"))
def make(request: pytest.FixtureRequest) -> partial[Surrogate]:
    return partial(load("recommend/surrogates", request.param), COLUMNS, 0)


def test_every_surrogate_keeps_the_contract(make: partial[Surrogate]) -> None:
    x, y, _ = data(60)
    first, second = make(), make()
    for model in (first, second):
        model.fit(x, y)
    a, b = first.predict(x[:7], 0.8), second.predict(x[:7], 0.8)
    for field in ("mean", "low", "high"):
        assert getattr(a, field).shape == (7,)
        assert np.array_equal(getattr(a, field), getattr(b, field))  # same data, same seed, same answer
    assert (a.low <= a.high).all()
    assert y.min() <= a.mean.min() <= a.mean.max() <= y.max()
    wide = first.predict(x[:7], 0.95)
    assert (wide.low <= a.low).all()
    assert (wide.high >= a.high).all()
    assert first.summary


def test_every_surrogate_takes_a_single_row(make: partial[Surrogate]) -> None:
    x, y, _ = data(1)
    model = make()
    model.fit(x, y)
    assert model.predict(x, 0.8).mean.tolist() == pytest.approx(y.tolist())


def test_baselines_by_hand() -> None:
    x = np.array([[1, 0, 0, 0], [1, 0, 9, 9], [0, 1, 0, 0]], dtype=float)
    y = np.array([1.0, 3.0, 8.0])
    everything, method = (load("recommend/surrogates", n)(COLUMNS) for n in ("mean_of_all", "mean_of_method"))
    everything.fit(x, y)
    method.fit(x, y)
    unseen = np.array([[0, 0, 0, 0]], dtype=float)
    assert everything.predict(x, 0.8).mean.tolist() == [4, 4, 4]
    assert method.predict(np.vstack([x, unseen]), 0.8).mean.tolist() == [2, 2, 8, 4]


def test_forest_beats_both_baselines_where_there_is_structure() -> None:
    x, y, _ = data(300)
    errors = {}
    for name in names("recommend/surrogates"):
        model = load("recommend/surrogates", name)(COLUMNS)
        model.fit(x[:200], y[:200])
        errors[name] = np.abs(model.predict(x[200:], 0.8).mean - y[200:]).mean()
    assert errors["quantile_forest"] < 0.5 * errors["mean_of_method"] < errors["mean_of_all"]


def test_intervals_hold_on_new_tasks() -> None:
    """Forty draws of 8 calibration tasks and 4 new ones, whose levels differ more than trials within a task do."""
    make, hits = partial(load("recommend/surrogates", "mean_of_method"), COLUMNS), []
    for seed in range(40):
        x, y, tasks = data(120, seed, task_effect=2.0)
        model = Conformal(make)
        model.fit(x[:80], y[:80], tasks[:80])
        predicted = model.predict(x[80:])
        hits.append(np.mean((predicted.low <= y[80:]) & (y[80:] <= predicted.high)))
    assert np.mean(hits) > 0.77  # nominal .8; standard error about .03


def test_forest_intervals_hold_on_new_tasks() -> None:
    make, hits = partial(load("recommend/surrogates", "quantile_forest"), COLUMNS), []
    for seed in range(4):
        x, y, tasks = data(120, seed, task_effect=0.5)
        model = Conformal(make)
        model.fit(x[:80], y[:80], tasks[:80])
        predicted = model.predict(x[80:])
        hits.append(np.mean((predicted.low <= y[80:]) & (y[80:] <= predicted.high)))
    assert np.mean(hits) > 0.7


def test_few_tasks_cannot_calibrate() -> None:
    assert [enough_tasks(k) for k in (1, 3, 4, 9)] == [False, False, True, True]
    x, y, tasks = data(10)
    model = Conformal(partial(load("recommend/surrogates", "mean_of_all"), COLUMNS))
    model.fit(x, y, tasks)
    assert np.isfinite(model.predict(x[:2]).low).all()


def test_learning_from_records_needs_no_torch() -> None:
    modules = (
        "database.schema database.ingest database.export analysis.regret analysis.statistics analysis.scaling "
        "recommend.features recommend.conformal recommend.rank"
    ).split()
    code = (
        f"import sys, {', '.join(f'harness.{module}' for module in modules)}\n"
        "print(sorted({'torch', 'transformers', 'sklearn', 'duckdb', 'pandas', 'optuna'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
