"""Time and size of a report on a study of about 2,000 trials, or of 20,000.

    python benchmarks/report.py [--large] [--folder DIR]

Twelve families, four tasks, two base models, four off-target skills; records are fabricated, nothing is trained.
Goals: 10 s (30 s for 20,000 trials) and 1.5 MB. The report is written in a fresh process, so that importing the plotting libraries counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.report.studies import large_spec, write_large

GOALS_S = {20: 10.0, 207: 30.0}
"""By trials of a family on one task and base model."""
GOAL_BYTES = 1_500_000
WRITE = """
import sys, time
from pathlib import Path
from harness.records.paths import Paths
from harness.report.page import write_report
path = write_report(Paths(Path(sys.argv[1]) / "results", Path(sys.argv[1]) / "reports"), "large")
print(path, time.process_time())
"""


def main() -> int:
    """Fabricate, write, print; exit status 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="Keep results and report here.")
    parser.add_argument("--large", action="store_true", help="20,000 trials.")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="harness-report-"))
    small, large = GOALS_S
    of_a_cell = large if asked.large else small
    paths, goal_s = write_large(folder, large_spec(trials=of_a_cell)), GOALS_S[of_a_cell]
    trials = sum(1 for _ in paths.trials.glob("*/*/record.json"))
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", WRITE, str(folder)], capture_output=True, text=True, check=True)
    wall = time.monotonic() - start
    path, cpu = done.stdout.split()
    size = Path(path).stat().st_size
    print(f"{trials:,} trials: {wall:.1f} s, {float(cpu):.1f} s of CPU (goal {goal_s:.0f} s)")
    print(f"{size / 1e6:.2f} MB (goal {GOAL_BYTES / 1e6:.1f} MB): {path}")
    return int(wall > goal_s or size > GOAL_BYTES)


if __name__ == "__main__":
    sys.exit(main())
