"""Tokens per second and peak memory on a GPU: fused trials against TRL and against our own loop, compiled.

    python benchmarks/gpu.py [--sizes 0.5b,1b] [--batches 1,4,8] [--packs 1,4,8,16] [--cases trl_default,...] [--out FILE]
    python benchmarks/gpu.py --smoke

Llama-shaped models with random weights, which are as fast as real ones; LoRA of rank 16 on all linear layers; rows of
512 tokens without padding. Goals at batch 1: fused 8 times TRL with its defaults, 3 times TRL tuned, 2 times our solo
loop compiled; full tuning of 1B in bfloat16 at half of the measured matrix peak. `--smoke` runs tiny shapes on the
processor, to know that the script works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from harness.axes.contract import StageSetup
from harness.cost.flops import model_size, training_flops
from harness.cost.meter import Meter, Tally
from harness.nn.batches import step_order
from harness.nn.sequences import TokenSequence
from harness.nn.stack import twin
from harness.records.trial import Stage
from harness.training.alone import Alone
from harness.training.choices import Choices, choices
from harness.training.learner import Learner, Watch
from harness.training.session import Session
from harness.training.together import Together
from harness.trial.hardware import measured_peak

RANK, RATE = 16, 2e-4
GOALS = {"trl_default": 8.0, "trl_tuned": 3.0, "compiled": 2.0}
FULL_GOAL = 0.5
SHAPES = {
    "0.5b": (896, 4864, 24, 14, 2, 151_936),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "smoke": (32, 64, 2, 4, 2, 128),
}
"""Hidden size, width of the MLP, layers, heads, heads of keys and values, vocabulary; output layer tied."""


@dataclass(frozen=True)
class Run:
    """What all cases of a call share."""

    device: str
    length: int
    supervised: int
    """Tokens at the end of each row that carry loss."""
    warm: int
    """Steps before the timed ones."""
    steps: int
    base: torch.dtype
    """Of the frozen base in our own loop; `harness` loads it in float32 and computes under autocast."""


def llama(size: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """A model with random weights."""
    hidden, width, layers, heads, kv_heads, vocabulary = SHAPES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype)


def tokenizer() -> PreTrainedTokenizerFast:
    """What trainers insist on; rows are tokens already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def rows(run: Run, count: int, vocabulary: int) -> list[TokenSequence]:
    """Random rows."""
    drawn = torch.randint(2, vocabulary, (count, run.length), generator=torch.Generator().manual_seed(1)).tolist()
    quiet = (-100,) * (run.length - run.supervised)
    return [TokenSequence(tuple(ids), quiet + tuple(ids[len(quiet) :])) for ids in drawn]


def random_learner(base: PreTrainedModel, run: Run, method: str, batch: int, seed: int) -> Learner:
    """A trial that is ready to train, as `harness.run` prepares it."""
    params = {"batch_size": batch, "learning_rate": RATE, "max_length": run.length}
    chosen: Choices = choices(Stage(method=method, params=params | ({"rank": RANK} if method == "lora" else {})))
    steps = run.warm + run.steps
    device = torch.device(run.device).type
    setup = StageSetup(chosen.params, tokenizer(), device, seed, steps, lambda: base, lambda: [])
    torch.manual_seed(seed)
    model = chosen.method.attach(twin(base), setup)
    learner = Learner(
        model=model,
        choices=chosen,
        setup=setup,
        watch=Watch(stop_at=steps, score_at=frozenset(), meter=Meter(device), tally=Tally()),
        rows=[],
    )
    learner.examples = [(row,) for row in rows(run, batch * steps, base.config.vocab_size)]
    learner.order = step_order((run.length,) * len(learner.examples), batch, steps, seed)
    return learner


def timed(run: Run, advance: Callable[[int], None]) -> float:
    """Seconds of the timed steps."""
    advance(run.warm)
    wait()
    started = time.perf_counter()
    advance(run.steps)
    wait()
    return time.perf_counter() - started


def wait() -> None:
    """For the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compile_layers(model: Any) -> None:
    """Compile each block; the output layer stays as it is, since positions are picked in front of it."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64  # a silent return to eager would time something else
    for layer in model.get_decoder().layers:
        layer.compile()


def ours(run: Run, base: PreTrainedModel, batch: int, count: int, compiled: bool = False) -> float:
    """Seconds of our loop for `count` trials."""
    learners = [random_learner(base, run, "lora", batch, seed) for seed in range(count)]
    session: Session = Together(learners) if count > 1 else Alone(learners[0])
    if compiled:
        compile_layers(session.stack.model if isinstance(session, Together) else learners[0].model)
    return timed(run, session.advance)


def full(run: Run, base: PreTrainedModel, batch: int, compiled: bool) -> tuple[float, float]:
    """Seconds of full tuning alone, and its model FLOPs."""
    learner = random_learner(base, run, "full", batch, 0)
    session = Alone(learner)
    if compiled:
        compile_layers(learner.model)
    seconds = timed(run, session.advance)
    sequences = batch * run.steps
    return seconds, training_flops(model_size(learner.model), sequences * run.length, sequences * run.length**2)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Times a trainer's steps after its first ones."""

    def __init__(self, run: Run) -> None:
        self.run, self.started, self.seconds = run, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start and stop."""
        if state.global_step in (self.run.warm, self.run.warm + self.run.steps):
            wait()
            self.started, self.seconds = time.perf_counter(), time.perf_counter() - self.started


def trl(run: Run, base: PreTrainedModel, batch: int, tuned: bool) -> float:
    """Seconds of TRL's trainer: as it comes, or with packing, without checkpointing."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    data = rows(run, batch * (run.warm + run.steps), base.config.vocab_size)
    columns = {"input_ids": [list(row.input_ids) for row in data], "labels": [list(row.labels) for row in data]}
    on_gpu = run.device != "cpu"
    tuning = {"gradient_checkpointing": False, "packing": True, "max_length": run.length} if tuned else {}
    clock = Clock(run)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            max_steps=run.warm + run.steps,
            learning_rate=RATE,
            use_cpu=not on_gpu,
            bf16=on_gpu,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            **tuning,
        )
        trainer = SFTTrainer(
            model=twin(base),
            args=arguments,
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer(),
            peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        trainer.train()
    return clock.seconds


@contextmanager
def measuring(line: dict[str, Any]) -> Iterator[None]:
    """Put the peak memory into `line`, or that it did not suffice."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    except torch.OutOfMemoryError:
        line["out_of_memory"] = True
    if torch.cuda.is_available():
        line["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)


def cases(options: argparse.Namespace) -> Iterator[tuple[str, bool, int, int]]:
    """Case, whether its base is in bfloat16, batch, trials; those of one base after each other."""
    for batch in options.batches:
        for case in ("trl_default", "solo", "compiled"):
            yield case, False, batch, 1
        for count in options.packs:
            if count > 1:
                yield "fused", False, batch, count
                yield "fused_compiled", False, batch, count
    for batch in options.batches:
        yield "trl_tuned", True, batch, 1


def lora_lines(run: Run, size: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure every case on one size of model."""
    base, held = None, None
    for case, half, batch, count in cases(options):
        if case not in options.cases:
            continue
        dtype = torch.bfloat16 if half and run.device != "cpu" else run.base
        if base is None or held != (half, dtype):
            base = None
            gc.collect()
            base, held = llama(size, dtype, run.device).requires_grad_(False), (half, dtype)
            if half:
                base.set_attn_implementation(attention())
        line: dict[str, Any] = {"size": size, "case": case, "batch": batch, "trials": count}
        with measuring(line):
            peer = case.startswith("trl")
            seconds = trl(run, base, batch, half) if peer else ours(run, base, batch, count, "compiled" in case)
            line["tokens_per_s"] = round(count * batch * run.length * run.steps / seconds)
        yield line


def full_lines(run: Run, size: str, batch: int) -> Iterator[dict[str, Any]]:
    """Measure full tuning as a share of the matrix peak."""
    dtype = "float32" if run.device == "cpu" else "bfloat16"
    peak = measured_peak(torch.device(run.device).type, dtype)
    for compiled in (False, True):
        line: dict[str, Any] = {"size": size, "case": "full_compiled" if compiled else "full", "batch": batch}
        with measuring(line):
            base = llama(size, torch.float32, run.device)
            seconds, flops = full(run, base, batch, compiled)
            line |= {"tokens_per_s": round(batch * run.length * run.steps / seconds), "trials": 1}
            line |= {"utilisation": round(flops / seconds / peak, 3), "peak_tflops": round(peak / 1e12, 2)}
        base = None
        yield line


def attention() -> str:
    """Flash attention where it is installed."""
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: every fused figure beside its three baselines and the goals, which are for batch 1."""
    known = {(x["size"], x["case"], x["batch"], x.get("trials")): x for x in lines}
    heads = " | ".join(f"over {case} (goal {goal:g})" for case, goal in GOALS.items())
    shown = [f"| model | case | batch | K | tokens/s | peak GB | {heads} |", "|---" * 9 + "|"]
    for line in lines:
        rate = line.get("tokens_per_s")
        ratios = []
        for case in GOALS:
            other = known.get((line["size"], case, line["batch"], 1), {}).get("tokens_per_s")
            ours = line["case"] in ("solo", "compiled", "fused", "fused_compiled") and case != line["case"]
            ratios.append(f"{rate / other:.2f}" if rate and other and ours else "")
        cells = [line["size"], line["case"], line["batch"], line.get("trials", 1)]
        cells += [rate or "out of memory", line.get("peak_gb", ""), *ratios]
        shown.append("| " + " | ".join(map(str, cells)) + " |")
    for line in lines:
        if "utilisation" in line:
            share = f"{line['utilisation']:.1%} of {line['peak_tflops']} TFLOP/s (goal {FULL_GOAL:.0%})"
            shown.append(f"\n{line['size']}, {line['case']}, batch {line['batch']}: {share}")
    return "\n".join(shown)


def asked() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    known = ("trl_default", "trl_tuned", "solo", "compiled", "fused", "full", "fused_compiled")
    parser.add_argument("--sizes", default="0.5b,1b", type=lambda text: text.split(","))
    parser.add_argument("--batches", default="1,4,8", type=numbers)
    parser.add_argument("--packs", default="1,4,8,16", type=numbers)
    text = f"of {', '.join(known)}; the last is left out by default, since every layer compiles for minutes"
    parser.add_argument("--cases", default=",".join(known[:-1]), type=lambda text: text.split(","), help=text)
    parser.add_argument("--supervised", default=512, type=int, help="tokens of a row that carry loss")
    parser.add_argument("--steps", default=20, type=int)
    parser.add_argument("--half-base", action="store_true", help="our loop on a frozen base in bfloat16")
    parser.add_argument("--out", type=Path, help="JSON lines, added to as figures come")
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure, and print a table."""
    options = asked()
    if options.smoke:
        options.sizes, options.batches, options.packs = ["smoke"], [1, 2], [1, 3]
        run = Run("cpu", 16, 16, 1, 2, torch.float32)
    elif torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}, TRL tuned with {attention()}")
        base = torch.bfloat16 if options.half_base else torch.float32
        run = Run("cuda", 512, options.supervised, 5, options.steps, base)
    else:
        sys.exit("no GPU here, so nothing was measured: --smoke tries the script on the processor")
    lines = []

    def measured() -> Iterator[dict[str, Any]]:
        for size in options.sizes:
            yield from lora_lines(run, size, options)
        if "full" in options.cases:
            yield from full_lines(run, options.sizes[-1], options.batches[-1])

    for line in measured():
        lines.append(line)
        print(json.dumps(line), flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
