"""Damaged files of every kind, each through a command that reads it: taken, or refused with one sentence."""

import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_S

REPOSITORY = Path(__file__).parents[2]
CASES = 100
"""About as many as half a minute allows; `benchmarks/README.md` says how to try more."""

KINDS = (
    "study,recipe,task,rows in JSONL,rows in CSV,rows in Parquet,corpus,config,tokenizer,record,items,study's lines,study's facts,"
    "database,backtest,plug-in,pipeline,arguments"
)


def test_no_mutated_file_ends_in_a_traceback():
    command = [sys.executable, "benchmarks/mutated_files.py", f"--count={CASES}", "--first=30000", f"--kinds={KINDS}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    total = done.stdout.splitlines()[-1]
    assert total.startswith(f"| all | {CASES} |"), done.stdout[-3000:]
