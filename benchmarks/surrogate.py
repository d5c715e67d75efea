"""Does the forest beat the means on runs that nobody here made? 10-fold cross-validation and leaving methods out.

Run: HARNESS_DATA=... python benchmarks/surrogate.py
Data: Hugging Face PEFT's public method comparison, MetaMathQA, `runs/peft_method_comparison.csv`. Every plug-in of
harness/surrogates is measured; the intervals are the calibrated ones, with methods in the place of tasks.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas

from harness.plugins import load, names
from harness.recommend.conformal import COVERAGE, Conformal
from harness.recommend.features import Encoder

NUMBERS = ("cfg_batch_size", "cfg_max_seq_length", "peft_r", "peft_lora_alpha", "peft_num_virtual_tokens")
LOGARITHMS = ("cfg_opt_lr", "num_trainable_params")
CATEGORIES = ("cfg_optimizer_type", "cfg_lr_scheduler", "peft_use_rslora", "peft_use_dora", "peft_target_modules")
TARGETS = {"test_accuracy": False, "train_time": True, "accelerator_memory_max": True}


def read(path: Path) -> pandas.DataFrame:
    """Successful MetaMathQA runs, each with its features as `describe` would name them."""
    frame = pandas.read_csv(path, low_memory=False)
    frame = frame[(frame["suite"] == "MetaMathQA") & (frame["status"] == "success")].dropna(subset=list(TARGETS))
    frame["features"] = [_features(row) for _, row in frame.iterrows()]
    return frame.reset_index(drop=True)


def _features(row: pandas.Series) -> dict[str, float | str]:
    features: dict[str, float | str] = {"stage0.method": str(row["peft_type"])}
    features |= {name: float(row[name]) for name in NUMBERS if pandas.notna(row[name])}
    features |= {name: float(np.log10(row[name])) for name in LOGARITHMS if row[name] > 0}
    features |= {name: str(row[name]) for name in CATEGORIES if pandas.notna(row[name])}
    config = json.loads(row["peft_config_json"]) if isinstance(row["peft_config_json"], str) else {}
    return features | {
        f"config.{name}": str(value) for name, value in config.items() if isinstance(value, bool | str | int)
    }


def measure(frame: pandas.DataFrame, target: str, folds: list[np.ndarray]) -> None:
    """Print the mean absolute error of every surrogate over the folds, and its intervals' coverage."""
    y = np.log(frame[target].to_numpy(float)) if TARGETS[target] else frame[target].to_numpy(float)
    groups = frame["peft_type"].astype(str).to_numpy()
    for name in names("recommend/surrogates"):
        errors, held = [], []
        for out in folds:
            encoder = Encoder.fit(list(frame["features"][~out]))
            x = encoder.transform(list(frame["features"]))
            model = Conformal(partial(load("recommend/surrogates", name), encoder.columns))
            model.fit(x[~out], y[~out], list(groups[~out]))
            predicted = model.predict(x[out])
            errors += list(np.abs(predicted.mean - y[out]))
            held += list((predicted.low <= y[out]) & (y[out] <= predicted.high))
        unit = "log" if TARGETS[target] else "accuracy"
        print(
            f"  {target}: {name:16} mean error {np.mean(errors):.4f} ({unit}), {COVERAGE:.0%} interval held {np.mean(held):.0%}"
        )


def main() -> None:
    """Measure both ways of holding out."""
    frame = read(Path(os.environ["HARNESS_DATA"]) / "runs" / "peft_method_comparison.csv")
    methods = frame["peft_type"].astype(str).to_numpy()
    print(f"{len(frame)} runs, {len(set(methods))} methods")
    fold = np.random.default_rng(0).permutation(len(frame)) % 10
    # A run repeated with the same settings would give its answer away: equal features stay in one fold.
    first: dict[str, int] = {}
    fold = np.array([fold[first.setdefault(repr(sorted(f.items())), i)] for i, f in enumerate(frame["features"])])
    print("10-fold, repeated runs in one fold:")
    for target in TARGETS:
        measure(frame, target, [fold == k for k in range(10)])
    print("each method left out in turn:")
    for target in TARGETS:
        measure(frame, target, [methods == method for method in sorted(set(methods))])


if __name__ == "__main__":
    main()
