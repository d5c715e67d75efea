"""Faults of all kinds, as `benchmarks/chaos.py` counts them; the benchmark itself goes on for as long as one likes."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_whatever_befalls_a_study_it_ends_as_if_nothing_had_been():
    faults = "300" if "CI" in os.environ else "20"  # six minutes, and half a minute
    command = [sys.executable, "benchmarks/chaos.py", "--faults", faults, "--seed", "7"]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 lost, 0 doubled, 0 blamed, 0 unreadable, 0 stuck, 0 other" in ran.stdout
