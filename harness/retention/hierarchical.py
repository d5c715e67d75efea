"""Hierarchical regularisation: weights are held by what they did for old knowledge, layers by what their weights did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.retention._corpus import corpus_tokens, path_importance
from harness.retention._weights import WeightPenalty
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = re.compile(r"\.(\d+)\.")


class HierarchicalRegularisation(WeightPenalty):
    """Squared distances count by the weight's importance times its layer's.

    A weight's importance is what it did for the loss on the base's corpus while a copy of the base was trained on it for
    `importance_steps` steps (the path integral of synaptic intelligence), over the mean of all weights. A layer's is a
    softmax over layers of the norms of their weights' importances, at `layer_temperature` times the mean norm, scaled to
    a mean of 1. Weights outside the blocks make up a layer of their own.
    """

    summary = "pulls weights back by their own and their layer's part in learning old texts"
    paper = "Song et al. 2025, arXiv 2501.13669; importance: Zenke et al. 2017, arXiv 1703.04200"
    requires = "a corpus of what the base knows, or texts sampled from it"
    space = {
        "hierarchy_strength": Float(1e-4, 1e3, default=1.0, log=True),
        "importance_steps": Integer(1, 10_000, default=100, log=True, searched=False),
        "importance_rate": Float(1e-7, 1e-2, default=1e-5, log=True, searched=False),
        "layer_temperature": Float(0.05, 20.0, default=1.0, log=True, searched=False),
    }

    def importances(self, moved: Mapping[str, Tensor], setup: StageSetup) -> Mapping[str, Tensor]:
        """Each weight's importance times its layer's."""
        params = setup.params
        steps, rate = params.integer("importance_steps"), params.number("importance_rate")
        # A copy, since finding importances trains it, in steps that 16 bits would round away.
        base = setup.load_base().float().eval()
        importances = path_importance(base, moved.keys(), corpus_tokens(setup, steps), steps, rate)
        return layered(importances, params.number("layer_temperature"))

    def strength(self, setup: StageSetup) -> float:
        """The parameter `hierarchy_strength`."""
        return setup.params.number("hierarchy_strength")


def layered(importances: Mapping[str, Tensor], temperature: float) -> dict[str, Tensor]:
    """Importances over their mean, each times its layer's coefficient.

    Args:
        importances: Of weights, by parameter.
        temperature: Of the softmax over layers, in mean norms.
    """
    import torch

    # Importances of different models lie orders of magnitude apart; over their mean, one range of strengths suits all.
    mean = torch.cat([value.flatten() for value in importances.values()]).mean().clamp(min=1e-30)
    scaled = {name: value / mean for name, value in importances.items()}
    layers = sorted({_layer(name) for name in scaled})
    # Softmax of norms themselves would be all or nothing, so they are taken in units of their mean.
    norms = torch.stack(
        [torch.cat([v.flatten() for name, v in scaled.items() if _layer(name) == layer]).norm() for layer in layers]
    )
    shares = (norms / (temperature * norms.mean().clamp(min=1e-30))).softmax(0) * len(layers)
    coefficients = dict(zip(layers, shares, strict=True))
    return {name: coefficients[_layer(name)] * value for name, value in scaled.items()}


def _layer(name: str) -> int:
    """A parameter's block, or -1."""
    match = BLOCK.search(name)
    return int(match[1]) if match else -1
