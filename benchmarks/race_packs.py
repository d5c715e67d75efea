"""Trials of a study through `run_pack` in this process: one by one, then all in one pack, from the same state.

`race.py` starts it. Seconds are those of the records' phases, so imports and weights, paid for by a trial before, count
for neither. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.driver.experiment import Site
from harness.driver.resolve import resolve
from harness.driver.trials import search_cells
from harness.records.paths import Paths
from harness.records.trial import TrialConfig, TrialResult
from harness.study.load import load_study
from harness.tasks.task import task_folders
from harness.trial.group import Workspace, run_pack


def configurations(root: Path) -> list[TrialConfig]:
    """Every trial that the study of a project asks for, at full fidelity."""
    study = load_study(root / "studies" / "race.yaml")
    cell = search_cells(resolve(study, Site(task_folders=task_folders(root))), {})[0]
    params = study.families["lora"].stages[0].params
    points = [(rate, rank) for rank in params["rank"]["choices"] for rate in params["learning_rate"]["choices"]]
    return [cell.design.config({"learning_rate": rate, "rank": rank}, cell.design.top) for rate, rank in points]


def summed(results: list[TrialResult]) -> dict[str, Any]:
    """Seconds by phase, and the mean training loss of each trial."""
    phases = {phase for result in results for phase in result.cost.seconds}
    return {
        "seconds": {phase: sum(r.cost.seconds.get(phase, 0.0) for r in results) for phase in sorted(phases)},
        "trained_with": [result.cost.trained_with for result in results],
        "losses": [result.curve[-1].loss if result.curve else None for result in results],
    }


def main() -> None:
    """Run both ways and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="project folder that race_data.project wrote")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    configs = configurations(options.root)

    def ran(name: str, packs: list[list[TrialConfig]]) -> list[TrialResult]:
        paths = Paths(options.root / name / "results", options.root / name / "reports")
        space = Workspace(paths, task_folders(options.root), "cpu", options.threads)
        return [result for pack in packs for result in run_pack(pack, space)]

    ran("warm", [[replace(config, steps=4, seed=1) for config in configs]])
    ran("warm", [[replace(configs[0], steps=4, seed=2)]])
    apart = ran("apart", [[config] for config in configs])
    together = ran("together", [configs])
    print(json.dumps({"apart": summed(apart), "together": summed(together)}))


if __name__ == "__main__":
    main()
