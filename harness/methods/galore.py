"""GaLore: full fine-tuning with Adam's moments in the gradient's own few directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import linear_layers, shapes
from harness.methods.full import FullFineTuning
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


class Galore(FullFineTuning):
    """Trains every weight; gradients of the blocks' linear weights are projected to their first singular directions.

    The step there is Adam's in that space, projected back and scaled by `update_scale`. A layer has no more directions
    than its shorter side; where that is less than `projection_rank`, a note says so.
    """

    summary = "full fine-tuning with optimiser state of low rank, in the gradients' own directions"
    paper = "Zhao et al. 2024, arXiv 2403.03507"
    alone = "its optimiser is its own"
    space = {
        "learning_rate": Float(1e-6, 1e-2, default=1e-4, log=True),
        "projection_rank": Integer(1, 1024, default=128, log=True),
        "update_scale": Float(0.05, 4.0, default=0.25, log=True, searched=False),
        "refresh_steps": Integer(1, 1000, default=200, log=True, searched=False),
    }

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW, projecting what is inside the blocks."""
        from harness.methods._optimizers import State, low_rank_adam, top_directions

        rank, scale = setup.params.integer("projection_rank"), setup.params.number("update_scale")
        names = linear_layers(model, "all")
        # The singular value decomposition just gives fewer directions there.
        if narrow := sum(min(sizes) < rank for sizes in shapes(model, names)):
            setup.note(
                f"projection_rank {rank} was cut to the width of {narrow} of {len(names)} linear layers, which have no "
                "more directions"
            )

        def update(gradient: Tensor, p: Tensor, small: Tensor, direction: Tensor, state: State) -> Tensor:
            # Back from the projected space: P has orthonormal rows.
            return scale * (p.T @ direction)

        def projection(gradient: Tensor, number: int, period: int) -> Tensor:
            return top_directions(gradient, rank)

        return low_rank_adam(model, setup, names, projection, update)
