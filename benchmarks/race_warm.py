"""The peer that a careful user writes: one warm process, TRL's SFTTrainer with PEFT, lm-eval's `simple_evaluate`.

`race.py` starts it; several shards of one sweep run side by side, each of which writes its outcomes as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from race_data import ALPHA, MAX_LENGTH, Data, Trial, trials_of

TUNED = {
    "gradient_checkpointing": False,
    "max_length": MAX_LENGTH,
    "save_strategy": "no",
    "dataloader_pin_memory": False,
}


class Sweep:
    """What a warm process keeps between trials."""

    def __init__(self, options: argparse.Namespace) -> None:
        import datasets
        import torch
        from lm_eval.tasks import TaskManager
        from transformers import AutoTokenizer

        torch.set_num_threads(options.threads)
        datasets.disable_progress_bars()
        self.options, self.data = options, Data(options.data)
        self.manager = TaskManager(include_path=str(self.data.tasks), include_defaults=False)
        self.rows = datasets.load_dataset("json", data_files=str(self.data.rows / "train.jsonl"), split="train")
        self.model = self.data.model(options.model)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)

    def run(self, trial: Trial, task: str = "race") -> dict[str, Any]:
        """Train and score one trial: loss averaged over all steps, accuracy."""
        from peft import LoraConfig
        from transformers import AutoModelForCausalLM
        from trl import SFTConfig, SFTTrainer

        lora = LoraConfig(
            r=trial.rank, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        tuned = TUNED | {"bf16": self.options.bf16} if self.options.tuned else {}
        arguments = SFTConfig(
            output_dir=str(self.options.out / f"{trial.rate}-{trial.rank}-{trial.seed}"),
            num_train_epochs=1,
            per_device_train_batch_size=8,
            learning_rate=trial.rate,
            seed=trial.seed,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            **tuned,
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(self.model),
            args=arguments,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
            peft_config=lora,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            loss = trainer.train().training_loss
        return asdict(trial) | {"loss": loss, "accuracy": self._accuracy(trainer.model.eval(), task)}

    def _accuracy(self, model: Any, task: str) -> float:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        size = 32 if self.options.tuned else 1
        wrapped = HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=size, device="cpu")
        tuned = {"bootstrap_iters": 0, "log_samples": False} if self.options.tuned else {}
        found = simple_evaluate(model=wrapped, tasks=[task], task_manager=self.manager, **tuned)
        return float(found["results"][task]["acc,none"])


def confirmed(sweep: Sweep, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fresh seeds of the best trial of all shards, on the test rows, shared out among the shards."""
    shard, shards = options.shard
    parts = [options.out / f"{number}.json" for number in range(shards)]
    while not all(part.exists() for part in parts):
        time.sleep(0.1)
    best = max((outcome for part in parts for outcome in json.loads(part.read_text())), key=lambda o: o["accuracy"])
    seeds = range(1001, 1001 + options.confirm)[shard::shards]
    return [sweep.run(Trial(best["rate"], best["rank"], seed), "race_test") for seed in seeds]


def write(path: Path, outcomes: list[dict[str, Any]]) -> None:
    """Write whole or not at all: another shard may be waiting for it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcomes))
    os.replace(part, path)


def main() -> None:
    """Run a shard's trials one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for NUMBER.json")
    parser.add_argument("--shard", type=int, nargs=2, default=(0, 1), metavar=("NUMBER", "SHARDS"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--bf16", action="store_true", help="autocast; without --tuned it is TRL's default")
    parser.add_argument("--seed", type=int, default=0, help="added to each trial's own")
    parser.add_argument("--confirm", type=int, default=0, help="fresh seeds of the best trial")
    options = parser.parse_args()
    number, shards = options.shard
    sweep = Sweep(options)
    mine = trials_of(options.trials)[number::shards]
    outcomes = [sweep.run(replace(trial, seed=trial.seed + options.seed)) for trial in mine]
    write(options.out / f"{number}.json", outcomes)
    if options.confirm:
        write(options.out / f"{number}.confirmed.json", confirmed(sweep, options))


if __name__ == "__main__":
    main()
