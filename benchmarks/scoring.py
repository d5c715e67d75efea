"""Scoring several adapters on one base at once, against lm-eval scoring them one by one.

    python benchmarks/scoring.py [--model stories260K] [--adapters 8] [--repeats 3]

The race's 200 validation rows of two choices, LoRA adapters of mixed ranks on all linear layers. Ways take turns, and the
fastest of each way's turns counts; imports and models are there before. The baseline is `lm_eval.simple_evaluate` with
lm-eval's own wrapper of a live model, 32 rows at a time; `prepared` spares it the task's construction and its look at the
environment. Goal: 5 times. Log-likelihoods must be lm-eval's to 1e-4, and so must the accuracy of every item, but for
those whose choices lm-eval itself tells apart by no more than that.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race_data import ALPHA, RANKS, ROWS, Data, prepare, project

GOAL = 5.0
TOLERANCE = 1e-4


def adapted(folder: Path, count: int) -> tuple[list[Any], list[Any], Any]:
    """PEFT models with random adapters of mixed ranks, the harness's method of each, and the tokenizer."""
    import torch

    from harness.axes.contract import StageSetup
    from harness.models.base_model import load_model, load_tokenizer, resolve_model
    from harness.plugins import load
    from harness.space import defaults

    base = resolve_model(str(folder))
    tokenizer = load_tokenizer(base)
    models, methods = [], []
    for number in range(count):
        method = load("methods", "lora")()
        params = defaults(method.space) | {"rank": RANKS[number % len(RANKS)], "alpha": ALPHA}
        setup = StageSetup(params, tokenizer, "cpu", 1, 1, lambda: load_model(base, {}, "cpu"), list)
        torch.manual_seed(number)
        model = method.attach(load_model(base, {}, "cpu"), setup).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        models.append(model)
        methods.append(method)
    return models, methods, tokenizer


class Peer:
    """lm-eval, one adapter after another."""

    def __init__(self, data: Data, models: list[Any], tokenizer: Any) -> None:
        from lm_eval.tasks import TaskManager, get_task_dict

        self.models, self.tokenizer = models, tokenizer
        self.manager = TaskManager(include_path=str(data.tasks), include_defaults=False)
        self.prepared_task = get_task_dict(["race"], self.manager)

    def wrapped(self, model: Any) -> Any:
        """lm-eval's wrapper of a live model."""
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=model, tokenizer=self.tokenizer, batch_size=32, device="cpu")

    def simple(self) -> list[Any]:
        """`simple_evaluate` of each model."""
        import lm_eval

        return [
            lm_eval.simple_evaluate(self.wrapped(model), tasks=["race"], task_manager=self.manager, bootstrap_iters=100)
            for model in self.models
        ]

    def prepared(self) -> list[Any]:
        """`evaluate` of each model on a task that is there already."""
        import lm_eval

        return [lm_eval.evaluate(self.wrapped(model), self.prepared_task, bootstrap_iters=0) for model in self.models]


class Own:
    """The harness."""

    def __init__(self, folder: Path, data: Data, models: list[Any], methods: list[Any], tokenizer: Any) -> None:
        from harness.evaluation.evaluate import Evaluator
        from harness.models.tokens import TokenCache
        from harness.tasks.task import find_task

        self.evaluator = Evaluator(TokenCache())
        project(folder, data, "stories260K", 1)
        self.task = find_task("race", (folder / "studies" / "tasks",))
        self.models, self.methods, self.tokenizer = models, methods, tokenizer

    def alone(self) -> list[Any]:
        """One adapter after another."""
        return [outcome for model in self.models for outcome in self._scored(model, 1)]

    def stacked(self) -> list[Any]:
        """The adapters as one model, which a pack of trials is already when it comes to be scored."""
        from harness.nn.stack import Stack

        self.stack = Stack(self.models, self.methods)
        return []

    def together(self) -> list[Any]:
        """All adapters at once."""
        return self._scored(self.stack.model, self.stack.count)

    def _scored(self, model: Any, count: int) -> list[Any]:
        from harness.evaluation.loglikelihood import StackedModels

        return self.evaluator.evaluate(StackedModels(model, count), self.tokenizer, self.task, "validation", None)

    def log_likelihoods(self) -> dict[str, list[list[float]]]:
        """Of each model's choices, by the hash of the item."""
        from harness.evaluation.evaluate import scoring_mode
        from harness.evaluation.loglikelihood import StackedModels
        from harness.evaluation.responses import Responder
        from harness.tasks.lm_eval_task import lm_eval_task

        built = lm_eval_task(self.task, "validation", None, None)
        model = self.stack.model
        with scoring_mode(model):
            given = Responder().respond(StackedModels(model, self.stack.count), self.tokenizer, built)
        texts = [instance.doc["text"] for instance in built.instances]
        found: dict[str, list[list[float]]] = {text: [[] for _ in self.models] for text in texts}
        for number, one in enumerate(given):
            for text, (value, _) in zip(texts, one or (), strict=True):
                found[text][number].append(value)
        return found


def compared(peer: list[Any], outcomes: list[Any], own: dict[str, list[list[float]]]) -> tuple[float, int, int]:
    """Largest difference of a log-likelihood in nats; items with another accuracy; those of them that are ties."""
    largest, wrong, ties = 0.0, 0, 0
    for number, (result, outcome) in enumerate(zip(peer, outcomes, strict=True)):
        value_of = {item.doc_hash: item.value for item in outcome.items}
        for sample in result["samples"]["race"]:
            theirs = [response[0] for response in sample["filtered_resps"]]
            ours = own[sample["doc"]["text"]][number]
            largest = max(largest, *(abs(a - b) for a, b in zip(theirs, ours, strict=True)))
            differs = value_of[sample["doc_hash"]] != sample["acc"]
            wrong += differs
            ties += differs and max(theirs) - min(theirs) <= TOLERANCE
    return largest, wrong, ties


@dataclass(frozen=True)
class Cost:
    """Seconds of a way, children's included."""

    wall: float
    cpu: float


def timed(ways: dict[str, Callable[[], list[Any]]], repeats: int) -> tuple[dict[str, Cost], dict[str, list[Any]]]:
    """Fewest seconds of each way, which take turns, and what each returned."""
    results = {name: run() for name, run in ways.items()}
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            started, before = time.perf_counter(), sum(os.times()[:4])
            run()
            costs[name].append(Cost(time.perf_counter() - started, sum(os.times()[:4]) - before))
    fewest = {name: Cost(min(c.wall for c in own), min(c.cpu for c in own)) for name, own in costs.items()}
    return fewest, results


def main() -> None:
    """Print seconds beside the baseline's, and what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="stories260K")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "LMEVAL_LOG_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        data = prepare(Path(name), Path(os.environ["HARNESS_DATA"]))
        models, methods, tokenizer = adapted(data.model(arguments.model), arguments.adapters)
        peer = Peer(data, models, tokenizer)
        own = Own(Path(name) / "project", data, models, methods, tokenizer)
        ways = {
            "simple_evaluate": peer.simple,
            "prepared": peer.prepared,
            "alone": own.alone,
            "stacked": own.stacked,
            "together": own.together,
        }
        fewest, results = timed(ways, arguments.repeats)
        difference, wrong, ties = compared(results["simple_evaluate"], results["together"], own.log_likelihoods())
    base = fewest["simple_evaluate"]
    print(f"{arguments.model}, {arguments.adapters} adapters, {ROWS['validation']} items, {arguments.threads} threads")
    for way, cost in fewest.items():
        ratios = f"{base.wall / cost.wall:6.2f} times, {base.cpu / cost.cpu:6.2f} in CPU"
        print(f"{way:<16} {cost.wall:7.2f} s wall {cost.cpu:7.2f} s CPU   {ratios}")
    print(
        f"log-likelihoods differ by at most {difference:.1e} nats; accuracy differs on {wrong} items, {ties} of them ties"
    )
    print(f"load of this machine: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    sys.exit(base.wall / fewest["together"].wall < GOAL or difference > TOLERANCE or wrong > ties)


if __name__ == "__main__":
    main()
