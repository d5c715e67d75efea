"""APOLLO: full fine-tuning with SGD-like memory, each channel's rate taken from Adam in a random space of few dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import linear_layers
from harness.methods.full import FullFineTuning
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

GROWTH = 1.01
"""By how much the norm of a matrix's update may grow from step to step."""


class Apollo(FullFineTuning):
    """Trains every weight; a linear weight's step is its gradient, scaled as Adam scales a random projection of it.

    Each channel (column of the matrix with its shorter side first) or the whole tensor is scaled by the ratio of the
    norms of Adam's step and the gradient in the projected space; then by `update_scale`. Rank 1 with the scale of the
    whole tensor and an `update_scale` of 11.3 is APOLLO-Mini.
    """

    summary = "full fine-tuning with gradients scaled by Adam in a random low-rank space"
    paper = "Zhu et al. 2024, arXiv 2412.05270"
    alone = "its optimiser is its own"
    space = {
        "learning_rate": Float(1e-6, 1e-2, default=1e-4, log=True),
        "projection_rank": Integer(1, 1024, default=128, log=True),
        "update_scale": Float(0.25, 128.0, default=1.0, log=True, searched=False),
        "scale_of": Choice(("channel", "tensor"), default="channel", searched=False),
        "refresh_steps": Integer(1, 1000, default=200, log=True, searched=False),
    }

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW, with scaled gradients inside the blocks."""
        from harness.methods._optimizers import State, limited, low_rank_adam, random_directions

        rank, scale = setup.params.integer("projection_rank"), setup.params.number("update_scale")
        axis = (0,) if setup.params.text("scale_of") == "channel" else (0, 1)

        def update(gradient: Tensor, p: Tensor, small: Tensor, direction: Tensor, state: State) -> Tensor:
            # A gradient of zero projects to zero, which must not be divided by.
            factor = direction.norm(dim=axis, keepdim=True) / small.norm(dim=axis, keepdim=True).clamp(min=1e-12)
            return limited(scale * gradient * factor, state, GROWTH)

        def projection(gradient: Tensor, number: int, period: int) -> Tensor:
            # By seed, parameter and period, so that a trial that goes on from a checkpoint projects as it would have.
            return random_directions(gradient, rank, setup.seed, "apollo", number, period)

        return low_rank_adam(model, setup, linear_layers(model, "all"), projection, update)
