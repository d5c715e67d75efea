"""What a small trial takes beside its training: collections of garbage, and seeds.

Run: python benchmarks/small_trials.py

Each trial trains LoRA for six steps on a model of two layers. Printed is CPU time, the median of ten trials each way, in
turns, in the same process.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

TRIALS = 10
SEEDS = 500


def main() -> None:
    """Print both comparisons."""
    import torch

    from harness.nn.determinism import seed_torch
    from harness.records.paths import Paths
    from harness.trial.group import Workspace, run_trial
    from harness.trial.process import WarmProcess
    from tests.tiny import config, save_llama, save_tasks, stage

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "llama").mkdir()
        (root / "tasks").mkdir()
        world = SimpleNamespace(llama=save_llama(root / "llama"), tasks=save_tasks(root / "tasks"))
        workspace, process = Workspace(Paths(root / "results"), (world.tasks,), device="cpu"), WarmProcess()

        def run(seed: int) -> float:
            trial = config(world, stage("lora", rank=4), steps=6, seed=seed)
            return cpu_s(lambda: run_trial(trial, workspace, process))

        run(0)  # imports, and freezes what they made
        seen: dict[bool, list[float]] = {True: [], False: []}
        for seed in range(1, 2 * TRIALS + 1):
            frozen = bool(seed % 2)
            gc.unfreeze()
            gc.collect()  # what the trial before left is not frozen with what libraries hold
            if frozen:
                gc.freeze()
            seen[frozen].append(run(seed))
    print(f"a trial: {median(seen[True]):.2f} s; where collections go through libraries: {median(seen[False]):.2f} s")
    ours, theirs = (
        1e3 / SEEDS * cpu_s(lambda seed=call: [*map(seed, range(SEEDS))]) for call in (seed_torch, torch.manual_seed)
    )
    print(f"a seed: {ours:.4f} ms; torch.manual_seed on this machine: {theirs:.4f} ms")


def cpu_s(work: Callable[[], object]) -> float:
    """CPU seconds that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
