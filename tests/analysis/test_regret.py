from __future__ import annotations

import pytest

from harness.analysis.regret import normalized_regret, simple_regret


def test_regret_by_hand() -> None:
    assert simple_regret(0.8, 0.6) == pytest.approx(0.2)
    assert simple_regret(0.6, 0.8) == 0.0
    assert normalized_regret(0.8, 0.6, 0.4) == pytest.approx(0.5)
    assert normalized_regret(0.4, 0.4, 0.4) is None
