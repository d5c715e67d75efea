"""FAR: after a few steps, the feed-forward nodes that learned least are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._blocks import blocks, unknown_blocks
from harness.methods._linear import uses_conv1d
from harness.methods._resting import MOVES, RestingMethod
from harness.nn.optimizer import learning_rate
from harness.space import Float

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Linear, Parameter
    from transformers import PreTrainedModel


class Far(RestingMethod):
    """Trains everything for a share of the steps, then freezes the nodes of each feed-forward layer that moved least.

    A node is an output of a linear layer: its weights and its bias. How far it moved is the L1 distance of its weights
    to where the stage began. All that is not in a feed-forward part goes on training. A first step at a learning rate of
    0, as warm-up has it, moves nothing and is never the last of the priming.
    """

    summary = "full fine-tuning that soon freezes the feed-forward nodes that learn least"
    paper = "Vucetic et al. 2022, arXiv 2205.01541"
    space = {
        "learning_rate": Float(1e-6, 3e-3, default=2e-5, log=True),
        "retained_nodes": Float(0.05, 0.95, default=0.1),
        "priming_share": Float(0.005, 0.5, default=0.02, log=True, searched=False),
    }

    def skip(self, situation: Situation) -> str | None:
        """The feed-forward parts must be known."""
        return unknown_blocks(situation)

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Remember where the feed-forward layers start."""
        model = super().attach(model, setup)
        self._starts = [layer.weight.detach().clone() for layer in feed_forward_layers(model)]
        self._transposed = uses_conv1d(model)
        # A warm-up starts at a rate of 0, after which every node has moved equally far: not at all.
        least = 1 if learning_rate(setup.params, 0, setup.steps) else 2
        self._primed = max(least, round(setup.params.number("priming_share") * setup.steps))
        setup.note(f"the nodes to freeze are chosen after {self._primed} of {setup.steps} steps")
        return model

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """At the end of priming, choose."""
        super().after_step(model, step)
        if step == self._primed:
            for layer, start in zip(feed_forward_layers(model), self._starts, strict=True):
                self._choose(layer, start)

    def _choose(self, layer: Linear, start: Tensor) -> None:
        """Mark the nodes that moved most; nodes are columns of a transposed weight."""
        import torch

        moved = (layer.weight.detach() - start).abs().sum(0 if self._transposed else 1)
        chosen = moved.topk(max(1, round(self.setup.params.number("retained_nodes") * len(moved)))).indices
        moves = torch.zeros_like(moved).scatter(0, chosen, 1.0)
        masks: list[tuple[Parameter | None, Tensor]] = [
            (layer.get_parameter("weight"), moves if self._transposed else moves.unsqueeze(1)),
            (layer.bias, moves),
        ]
        for parameter, mask in masks:
            if parameter is not None:
                self.state(parameter)[MOVES] = mask


def feed_forward_layers(model: PreTrainedModel) -> Iterator[Linear]:
    """The linear layers of all feed-forward parts."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    for block in blocks(model):
        for name in dict.fromkeys(block.feed_forward):
            yield from (m for m in model.get_submodule(name).modules() if isinstance(m, Linear | Conv1D))
