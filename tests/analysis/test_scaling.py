from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas
import pytest

from harness.analysis.scaling import fit

SIZES = np.array([200 * 2**k for k in range(14)], dtype=float)


def test_a_power_law_is_recovered() -> None:
    found = fit("power", SIZES, 5 * SIZES**-0.3 + 1.2, bootstraps=5)
    assert found
    assert found.parameters == pytest.approx({"A": 5, "alpha": 0.3, "E": 1.2}, rel=0.01)
    assert found.rmsd < 1e-4
    assert found.predict([1e9]) == pytest.approx(5 * 1e9**-0.3 + 1.2, rel=0.01)
    assert found.intervals["alpha"].low == pytest.approx(0.3, rel=0.02)  # no noise, no width


def test_a_joint_law_is_recovered() -> None:
    n, d = (grid.ravel() for grid in np.meshgrid([1e5, 3e5, 1e6, 4e6], [100.0, 1000.0, 10000.0]))
    found = fit("joint", [n, d], 40 * n**-0.2 * d**-0.1 + 0.8)
    assert found
    assert found.predict([1e6], [1000]) == pytest.approx(40 * 1e6**-0.2 * 1000**-0.1 + 0.8, rel=1e-3)
    assert found.parameters["E"] == pytest.approx(0.8, rel=0.05)


def test_one_outlier_moves_little() -> None:
    losses = 5 * SIZES**-0.3 + 1.2
    losses[6] *= 1.5
    found = fit("power", SIZES, losses)
    assert found
    assert found.predict(SIZES[-1:]) == pytest.approx(5 * SIZES[-1] ** -0.3 + 1.2, rel=0.02)


def test_noise_gives_intervals_that_hold_the_truth() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(SIZES))
    found = fit("power", SIZES, (5 * SIZES**-0.3 + 1.2) * np.exp(noise), bootstraps=40)
    assert found
    interval = found.intervals["alpha"]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < 0.3 < interval.high
    assert interval.high - interval.low > 0.01
    again = fit("power", SIZES, (5 * SIZES**-0.3 + 1.2) * np.exp(noise), bootstraps=40)
    assert again == found


def test_too_few_points_are_no_fit() -> None:
    assert fit("power", [1.0, 2.0, 3.0], [3.0, 2.0, 1.5]) is None
    with pytest.raises(ValueError, match="positive"):
        fit("power", [0.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="did you mean 'power'"):
        fit("powr", [1.0], [1.0])


@pytest.mark.thorough
@pytest.mark.shared
def test_public_fine_tuning_curves_fit_as_well_as_published(shared_data: Path) -> None:
    """Of 30 models x 3 tasks every sixth curve.

    The authors' own fits of all 90 (arXiv:2402.02314, their table) differ from the log losses by .0080 in the mean with
    the rectified law and by .0364 with the vanilla power law; ours of all 90 by .0079 and .0365.
    """
    rectified, power = [], []
    for path in sorted((shared_data / "runs").glob("rectified_*.csv")):
        frame = pandas.read_csv(path)
        sizes = [column for column in frame.columns if column.isdigit() and column != "0"]
        for losses in frame[sizes].to_numpy()[::6]:
            for law, errors in (("rectified", rectified), ("power", power)):
                found = fit(law, [float(size) for size in sizes], losses)
                assert found
                errors.append(found.rmsd)
    assert len(rectified) == 15
    assert np.mean(rectified) < 0.0080 * 1.1
    assert np.mean(power) > 3 * np.mean(rectified)
    assert all(r <= p * 1.02 for r, p in zip(rectified, power, strict=True))  # the power law is its case D_l = 0
