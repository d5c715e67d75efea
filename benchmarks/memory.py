"""What the memory forecast says beside what lives while the harness's own loop trains, on models without data.

Run: python benchmarks/memory.py [--sizes 1B 7B 8B] [--methods full lora ...]
     python benchmarks/memory.py --public FOLDER
     python benchmarks/memory.py --testbed
Configs are written out below; nothing is downloaded and no weight has a value. What is measured is the most bytes of all
tensors that are alive at a time in the second of two steps of `training.alone`: every operation's result counts until it
is freed. With --public it is compared with what others measured on an A100 (the files fms_*.csv of a folder): adapters on
Mistral 7B and Llama 3 8B, trained by another loop, which recomputes layers and has logits at every token. With --testbed it
is compared with the most that a process of this machine had in main memory while a trial trained on an embedded model.
What none of it shows beforehand: gaps of an allocator and workspaces of kernels (`cost.memory.MARGIN` is for them).
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from transformers import LlamaConfig, MistralConfig, PretrainedConfig, Qwen2Config

from harness.cost.layout import layout
from harness.cost.memory import Layout, Load
from harness.driver.experiment import Site
from harness.driver.memory import Needs
from harness.driver.resolve import resolve
from harness.records.paths import Paths
from harness.records.trial import Evaluation, TrialConfig
from harness.study.spec import StudySpec
from harness.trial.group import Workspace, run_trial
from tests.cost.alive import Trained, measured, predicted

LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "1B": LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=128256, tie_word_embeddings=True,
    ),
    "7B": Qwen2Config(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, tie_word_embeddings=False,
    ),
    "8B": LlamaConfig(**LLAMA_8B, num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False),
}  # fmt: skip
"""As Llama 3.2 1B, Qwen2.5 7B and Llama 3.1 8B have it."""
PUBLIC: Mapping[str, PretrainedConfig] = {
    "Meta-Llama-3-8B": CONFIGS["8B"],
    "Mistral-7B-v0.1": MistralConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=32000, tie_word_embeddings=False, sliding_window=None,
    ),
}  # fmt: skip
"""By a part of their names in the files."""
METHODS = ("full", "lora", "lora again", "layer_freezing", "prefix_tuning", "galore")


def compare(sizes: list[str], methods: list[str]) -> None:
    """Print forecast beside measurement, with their ratio."""
    print("| base | method | rows x tokens | passes | forecast GB | alive GB | ratio |\n|---|---|---|---|---|---|---|")
    ratios = []
    for size in sizes:
        for name in methods:
            for rows, passes in ((4, 1), (2, 4)):
                trained = Trained(
                    config=CONFIGS[size], method=name.removesuffix(" again"), rows=rows, passes=passes,
                    recomputes=name.endswith("again"),
                )  # fmt: skip
                said, alive = predicted(trained).peak, measured(trained)
                ratios.append(said / alive)
                print(
                    f"| {size} | {name} | {rows} x 1024 | {passes} | {said / 1e9:.2f} | {alive / 1e9:.2f} | {ratios[-1]:.3f} |",
                    flush=True,
                )
    print(f"ratios from {min(ratios):.3f} to {max(ratios):.3f}")


def public(folder: Path) -> None:
    """Print the forecast beside the peaks of others' runs on one GPU: PEFT's LoRA on attention, rank 16, 4,096 tokens.

    Args:
        folder: Where fms_*.csv are.
    """
    held, peaks = [], []
    print("| base | method | rows | forecast GB | measured GB | ratio |\n|---|---|---|---|---|---|")
    for path in sorted(folder.glob("fms_*.csv")):
        for row in csv.DictReader(path.open()):
            base = next((name for name in PUBLIC if name in row.get("model_name_or_path", "")), None)
            framework = row.get("framework_config", "")
            if base is None or row["num_gpus"] != "1" or row.get("peft_method") != "lora" or "gptq" in framework:
                continue
            if not row["mem_peak_torch_mem_alloc_in_bytes"] or "orca" in path.name:  # rows of many lengths
                continue
            count = int(row["per_device_train_batch_size"])
            method = "qlora" if "bnb" in framework else "lora"
            found = public_layout(base, method)
            between = found.weights + found.trained + found.moments
            held.append(between / float(row["mem_torch_mem_alloc_in_bytes"]))
            if "foak" in framework:  # other kernels, which keep less
                continue
            tokens = count * 4096
            one = found.memory(Load(rows=count, length=4096, supervised=0), recomputes=True)
            said, there = (
                one.peak + found.logit * found.vocabulary * tokens,
                float(row["mem_peak_torch_mem_alloc_in_bytes"]),
            )
            peaks.append(said / there)
            print(
                f"| {base} | {method}, {framework} | {count} | {said / 1e9:.2f} | {there / 1e9:.2f} | {peaks[-1]:.3f} |"
            )
    for what, ratios in (("held between steps", held), ("peak", peaks)):
        errors = [abs(ratio - 1) for ratio in ratios]
        print(f"{what}: median error {median(errors):.1%}, largest {max(errors):.1%}, of {len(errors)} runs")


@cache
def public_layout(base: str, method: str) -> Layout:
    """What LoRA on the attention of a base holds.

    Args:
        base: A key of `PUBLIC`.
        method: `lora` or `qlora`.
    """
    return layout(Trained(config=PUBLIC[base], method=method, length=4096, params={"target": "attention"}).case())


def testbed(method: str, folder: Path) -> None:
    """Print what a plan says of a trial of an embedded model, and what its process took.

    Args:
        method: Of the trial.
        folder: Where its record goes.
    """
    tasks = (Path(__file__).parent.parent / "harness" / "testbed" / "tasks",)
    site = Site(paths=Paths(folder / "results", folder / "reports"), task_folders=tasks, device="cpu")
    asked = {"name": "memory", "question": "?", "base_models": ["tiny-4m"], "tasks": ["tb_sort"]}
    asked |= {"families": {"one": {"method": method}}, "budget": {"trials": 1, "steps": 20}, "search": {"limit": 8}}
    experiment = resolve(StudySpec.model_validate(asked), site)
    model, task = experiment.arenas[0]
    pipeline = experiment.families["one"].pipeline(model.ref, {})
    config = TrialConfig(pipeline=pipeline, task=task.ref, steps=20, evaluation=Evaluation(limit=8))
    said, took = Needs(experiment).measured(config), run_trial(config, Workspace(site.paths, tasks, device="cpu")).cost
    assert said
    assert took.peak_memory_bytes
    print(
        f"| tiny-4m | {method} | {said / 1e9:.2f} | {took.peak_memory_bytes / 1e9:.2f} | {said / took.peak_memory_bytes:.3f} |"
    )


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--public", type=Path)
    parser.add_argument("--testbed", nargs="*")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    if chosen.testbed:
        with tempfile.TemporaryDirectory() as folder:
            testbed(chosen.testbed[0], Path(folder))
        return
    if chosen.testbed is not None:
        print("| base | method | forecast GB | resident GB | ratio |\n|---|---|---|---|---|", flush=True)
        for method in ("full", "lora", "qlora"):  # each in a process of its own
            subprocess.run([sys.executable, __file__, "--testbed", method], check=True, stderr=subprocess.DEVNULL)
        return
    if chosen.public:
        public(chosen.public)
        return
    compare(chosen.sizes, chosen.methods)


if __name__ == "__main__":
    main()
