"""What the memory forecast says beside what lives while the harness's own loop trains, on models without data.

Run: python benchmarks/memory.py [--sizes 1B 7B 8B] [--methods full lora ...]
Configs are written out below; nothing is downloaded and no weight has a value. What is measured is the most bytes of all
tensors that are alive at a time in the second of two steps of `training.alone`: every operation's result counts until it
is freed. What neither shows: gaps of an allocator and workspaces of kernels (`cost.memory.MARGIN` is for them).
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

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


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    compare(chosen.sizes, chosen.methods)


if __name__ == "__main__":
    main()
