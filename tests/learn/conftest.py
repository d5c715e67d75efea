from __future__ import annotations

from pathlib import Path

import pytest

from harness.records.paths import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "results", tmp_path / "reports")
