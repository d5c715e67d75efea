from __future__ import annotations

from pathlib import Path

import pytest

from harness.records.paths import Paths
from harness.report.page import write_report
from tests.report.studies import write_small


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A finished study, `made_up`; read it, do not change it."""
    return write_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def report(small: Paths) -> Path:
    """Its report."""
    return write_report(small, "made_up")
