"""Seconds to ingest 100,000 records, beside a plain Python loop that parses the same JSON.

Run: python benchmarks/ingest.py [--records 100000] [--folder FOLDER]
The goal is 10 s or less on two cores. The records are a fabricated study's, with other seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from harness.database.ingest import connect, ingest
from harness.records.paths import Paths
from harness.records.results import iterate_results, result_text
from harness.records.trial import derive_seed
from tests.fabricate import fabricate, study_spec


def multiply(paths: Paths, records: int) -> None:
    """Write `records` records: a fabricated study's, each with another seed, under its key."""
    with tempfile.TemporaryDirectory() as folder:
        small = Paths(Path(folder) / "results")
        made = fabricate(small, study_spec(tasks=5, trials=10))
        shutil.copytree(small.study("made_up").folder, paths.study("made_up").folder)
    with paths.study("made_up").members.open("w") as members:
        for index in range(records):
            result, member = made.results[index % len(made.results)], made.members[index % len(made.members)]
            result = replace(result, config=replace(result.config, seed=derive_seed(index)))
            path = paths.record(result.config.key)
            path.parent.mkdir(parents=True)
            path.write_text(result_text(result))
            members.write(json.dumps(member | {"key": result.config.key, "number": index}) + "\n")


def main() -> None:
    """Write, ingest, query, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="keep the records here; a temporary folder if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        paths = Paths((arguments.folder or Path(temporary)) / "results")
        if not paths.trials.exists():
            multiply(paths, arguments.records)
        summary = ingest(paths)
        print(
            f"ingest: {summary.trials} records in {summary.seconds:.2f} s; database {paths.database.stat().st_size / 1e6:.0f} MB"
        )
        start, count = time.monotonic(), 0
        for _ in iterate_results(paths):
            count += 1
            if count == 5000:
                break
        loop = (time.monotonic() - start) * summary.trials / count
        print(f"plain Python loop (read and parse only, {count} records measured): {loop:.1f} s for as many")
        with connect(paths) as database:
            for view in ("leaderboard", "forgetting", "frontier"):
                start = time.monotonic()
                rows = len(database.execute(f"SELECT * FROM {view}").fetchall())
                print(f"{view}: {rows} rows in {time.monotonic() - start:.2f} s")


if __name__ == "__main__":
    main()
