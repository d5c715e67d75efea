"""AdapterFusion: attention over adapters that were trained on other tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._blocks import blocks, hidden_width
from harness.methods._sources import SPACE, SourcesMethod
from harness.space import Choice, Float, Integer, Params, Text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.methods._adapters import Fusion


class AdapterFusion(SourcesMethod):
    """Trains an adapter on each of `fusion_sources`, other tasks, then freezes them and trains how to mix them.

    The sources are trained while the method is attached, each alone, for `source_steps` steps of the stage's batch size;
    what that takes is part of loading. The stage itself trains query, key and value of the fusion in each block. A
    penalty pulls the value matrix to the identity, where it starts.
    """

    summary = "learns to mix adapters that it first trains on other tasks"
    paper = "Pfeiffer et al. 2020, arXiv 2005.00247"
    limits = (
        "On the testbed's 1M model, 200 steps reached 39% of full tuning's gain: "
        "it only mixes what its sources learned before, at a learning rate of their own."
    )
    sources = "fusion_sources"
    alone = "its adapters are trained on other tasks first"
    trains = r".*\.adapter\.(query|key|value)\.(weight|bias)"
    saves = r".*\.adapter\..*"
    space = {
        "learning_rate": Float(1e-6, 1e-2, default=5e-5, log=True),
        "fusion_sources": Text(names="tasks"),
        **SPACE,
        "reduction": Integer(2, 64, default=16, log=True),
        "activation": Choice(("relu", "gelu", "silu"), default="relu", searched=False),
        "fusion_penalty": Float(0.0, 1.0, default=0.01, searched=False),
    }

    def build(self, model: PreTrainedModel, params: Params) -> PreTrainedModel:
        """A fusion of fresh adapters behind each block's feed-forward part; all of it trainable.

        Raises:
            SpecError: When fewer than two sources are named.
        """
        from harness.methods._adapters import Adapter, Fusion, put

        tasks = self.source_tasks(params)
        width, activation = hidden_width(model), params.text("activation")
        bottleneck = max(1, width // params.integer("reduction"))
        for block in blocks(model):
            sources = [Adapter(width, bottleneck, activation) for _ in tasks]
            put(model.get_submodule(block.feed_forward[1]), Fusion(width, sources), parallel=False)
        return model

    def mixtures(self, model: PreTrainedModel) -> list[Fusion]:
        """One behind each block's feed-forward part."""
        from harness.methods._adapters import Fusion

        return [module for module in model.modules() if isinstance(module, Fusion)]

    def penalty(self, model: PreTrainedModel, setup: StageSetup) -> Callable[[], Tensor]:
        """`fusion_penalty` times the squared distance of the value matrices to the identity."""
        import torch

        # Near the identity the value matrix mixes what the frozen adapters say, rather than making something new of it.
        weight, values = setup.params.number("fusion_penalty"), [fusion.value.weight for fusion in self.mixtures(model)]
        return lambda: (
            weight * torch.stack([((v - torch.eye(len(v), device=v.device)) ** 2).sum() for v in values]).sum()
        )
