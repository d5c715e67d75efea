"""AdapterFusion: attention over adapters that were trained on other tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from harness.errors import SpecError
from harness.methods._added import ModuleMethod
from harness.methods._blocks import blocks, hidden_width
from harness.plugins import Situation, StageSetup
from harness.records import derive_seed
from harness.space import Choice, Float, Integer, Scalar, Text, weighted

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.methods._adapters import Fusion

FEWEST = 2


class AdapterFusion(ModuleMethod):
    """Trains an adapter on each of `fusion_sources`, other tasks, then freezes them and trains how to mix them.

    The sources are trained while the method is attached, each alone, for `source_steps` steps of the stage's batch size;
    what that takes is part of loading. The stage itself trains query, key and value of the fusion in each block. A
    penalty pulls the value matrix to the identity, where it starts.
    """

    summary = "learns to mix adapters that it first trains on other tasks"
    paper = "Pfeiffer et al. 2020, arXiv 2005.00247"
    requires = "two or more other tasks"
    identity_at_start = False
    alone = "its adapters are trained on other tasks first"
    trains = r".*\.adapter\.(query|key|value)\.(weight|bias)"
    kept = r".*\.adapter\..*"
    space = {
        "learning_rate": Float(1e-6, 1e-2, default=5e-5, log=True),
        "fusion_sources": Text(names="tasks"),
        "source_steps": Integer(1, 100_000, default=200, log=True, searched=False),
        "source_learning_rate": Float(1e-5, 3e-2, default=1e-3, log=True, searched=False),
        "reduction": Integer(2, 64, default=16, log=True),
        "activation": Choice(("relu", "gelu", "silu"), default="relu", searched=False),
        "fusion_penalty": Float(0.0, 1.0, default=0.01, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """Two tasks or more must be named."""
        if "fusion_sources" in situation.params and (reason := _unfit(str(situation.params["fusion_sources"]))):
            return reason
        return super().skip(situation)

    def build(self, model: PreTrainedModel, params: Mapping[str, Scalar]) -> PreTrainedModel:
        """A fusion of fresh adapters behind each block's feed-forward part; all of it trainable.

        Raises:
            SpecError: When fewer than two sources are named.
        """
        from harness.methods._adapters import Adapter, Fusion, put

        text = str(params["fusion_sources"])
        if reason := _unfit(text):
            raise SpecError(f"method adapter_fusion: {reason}")
        width, activation = hidden_width(model), str(params["activation"])
        bottleneck = max(1, width // int(params["reduction"]))
        for block in blocks(model):
            sources = [Adapter(width, bottleneck, activation) for _ in weighted(text)]
            put(model.get_submodule(block.feed_forward[1]), Fusion(width, sources), parallel=False)
        return model

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze the base, train the sources, freeze them."""
        model = super().attach(model, setup)
        names = [name for name, _ in weighted(str(setup.params["fusion_sources"]))]
        for index, name in enumerate(names):
            loss = train_source(model, _fusions(model), index, name, setup)
            setup.note(f"the adapter of {name.partition('@')[0]} ended with a loss of {loss:.3f}")
        for fusion in _fusions(model):
            fusion.sources.requires_grad_(False)
        return model

    def penalty(self, model: PreTrainedModel, setup: StageSetup) -> Callable[[], Tensor]:
        """`fusion_penalty` times the squared distance of the value matrices to the identity."""
        import torch

        weight, values = float(setup.params["fusion_penalty"]), [fusion.value.weight for fusion in _fusions(model)]
        return lambda: (
            weight * torch.stack([((v - torch.eye(len(v), device=v.device)) ** 2).sum() for v in values]).sum()
        )


def train_source(model: PreTrainedModel, fusions: list[Fusion], index: int, name: str, setup: StageSetup) -> float:
    """Train one source's adapters on its task's rows with AdamW; returns the last step's loss in nats per token.

    Raises:
        SpecError: When the task has nothing to train on.
    """
    import torch

    from harness.methods._calibration import batches, drawn

    size, rows = int(setup.params["batch_size"]), setup.rows_of(name)
    steps, order = int(setup.params["source_steps"]), random.Random(derive_seed(setup.seed, "source", index))
    examples = drawn(rows, min(len(rows), steps * size), setup)
    moving = [p for fusion in fusions for p in fusion.sources[index].parameters()]
    optimizer = torch.optim.AdamW(moving, lr=float(setup.params["source_learning_rate"]), weight_decay=0.0)
    model.train()
    for fusion in fusions:
        fusion.only = index
    loss = torch.zeros(())
    for _ in range(steps):
        (batch,) = batches(order.sample(examples, min(size, len(examples))), setup, size)
        loss = model(**batch).loss
        for p, slope in zip(moving, torch.autograd.grad(loss, moving), strict=True):
            p.grad = slope
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
    optimizer.zero_grad()
    for fusion in fusions:
        fusion.only = None
    model.eval()
    return float(loss.detach())


def _fusions(model: PreTrainedModel) -> list[Fusion]:
    from harness.methods._adapters import Fusion

    return [module for module in model.modules() if isinstance(module, Fusion)]


def _unfit(text: str) -> str | None:
    """Why these cannot be its sources, or None."""
    named = weighted(text)
    if len({name for name, _ in named}) < FEWEST:
        return f"fusion_sources must name two tasks or more, but got {text!r}: name them in the study"
    if any(weight != 1.0 for _, weight in named):
        return f"fusion_sources must name tasks without weights, which fusion learns, but got {text!r}: leave them out"
    return None
