"""What methods share that train one adapter on each of several other tasks before they learn to mix them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.records.trial import derive_seed
from harness.space import Distribution, Float, Integer, weighted

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.axes.contract import StageSetup

FEWEST = 2
SPACE: dict[str, Distribution] = {
    "source_steps": Integer(1, 100_000, default=200, log=True, searched=False),
    "source_learning_rate": Float(1e-5, 3e-2, default=1e-3, log=True, searched=False),
}


def unfit(text: str, parameter: str) -> str | None:
    """Why these tasks cannot be the sources that a parameter names, or None."""
    named = weighted(text)
    if len({name for name, _ in named}) < FEWEST:
        return f"{parameter} must name two tasks or more, but got {text!r}: name them in the study"
    if any(weight != 1.0 for _, weight in named):
        return f"{parameter} must name tasks without weights, which are learned, but got {text!r}: leave them out"
    return None


def train_sources(model: PreTrainedModel, mixtures: Sequence[Any], parameter: str, setup: StageSetup) -> None:
    """Train the sources of all mixtures, each on the rows of its own task; then freeze them.

    Args:
        model: The model that the mixtures stand in.
        mixtures: Modules with a list `sources`, of which the one at `only` acts alone.
        parameter: Name of the parameter that names the tasks.
        setup: The stage's.

    Raises:
        SpecError: When a task has nothing to train on.
    """
    for index, (name, _) in enumerate(weighted(str(setup.params[parameter]))):
        loss = _train_source(model, mixtures, index, name, setup)
        setup.note(f"the adapter of {name.partition('@')[0]} ended with a loss of {loss:.3f}")
    for mixture in mixtures:
        mixture.sources.requires_grad_(False)


def _train_source(model: Any, mixtures: Sequence[Any], index: int, name: str, setup: StageSetup) -> float:
    """Train one source with AdamW; returns the last step's loss in nats per token."""
    import torch

    from harness.methods._calibration import batches, drawn

    size, rows = int(setup.params["batch_size"]), setup.rows_of(name)
    steps, order = int(setup.params["source_steps"]), random.Random(derive_seed(setup.seed, "source", index))
    examples = drawn(rows, min(len(rows), steps * size), setup)
    moving = [p for mixture in mixtures for p in mixture.sources[index].parameters()]
    optimizer = torch.optim.AdamW(moving, lr=float(setup.params["source_learning_rate"]), weight_decay=0.0)
    model.train()
    for mixture in mixtures:
        mixture.only = index
    loss = torch.zeros(())
    for _ in range(steps):
        (batch,) = batches(order.sample(examples, min(size, len(examples))), setup, size)
        loss = model(**batch).loss
        for p, slope in zip(moving, torch.autograd.grad(loss, moving), strict=True):
            p.grad = slope
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
    optimizer.zero_grad()
    for mixture in mixtures:
        mixture.only = None
    model.eval()
    return float(loss.detach())


def all_of(model: PreTrainedModel, kind: type[Module]) -> list[Any]:
    """A model's modules of a kind, in their order."""
    return [module for module in model.modules() if isinstance(module, kind)]
