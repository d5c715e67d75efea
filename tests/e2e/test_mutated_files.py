"""Damaged files of every kind, each through a command that reads it: taken, or refused with one sentence."""

import sys
from pathlib import Path

from tests.e2e import preloaded
from tests.patience import THOROUGH

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = 1000 if THOROUGH else 20
"""`benchmarks/README.md` says how to try more."""
FIRST, SEED = 30_000, 0


def test_no_mutated_file_ends_in_a_traceback(tmp_path):
    code, said, errors = preloaded.call(_tried, (tmp_path / "project",), tmp_path)
    assert code == 0, said[-6000:] + errors[-3000:]
    assert said.splitlines()[-1].startswith(f"| all | {CASES} |"), said[-3000:]


def _tried(folder):
    sys.path.insert(0, str(BENCHMARKS))
    import mutated_files

    folder.mkdir()
    built, *outcomes = mutated_files.cases(folder, range(FIRST, FIRST + CASES), SEED, list(mutated_files.KINDS))
    assert built is None
    for wrong in (outcome for outcome in outcomes if outcome.wrong):
        print(wrong)
    print(mutated_files.table(outcomes))
    sys.exit(any(outcome.wrong for outcome in outcomes))
