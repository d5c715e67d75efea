"""SPIDER: only weights move that the new task needs more than the base does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import linear_layers
from harness.methods._resting import MOVES, RestingMethod
from harness.space import Float, Integer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from transformers import PreTrainedModel

IMPORTANCE = "importance"
"""Key of the optimiser's state: the sum of an entry's absolute gradients so far."""


class Spider(RestingMethod):
    """Trains the linear weights whose importance to the task most exceeds that to the base; the rest is trained fully.

    A port to text of a method for models of images and text. Importance to the base is the weight's magnitude before the
    first step, importance to the task the sum of its absolute gradients, each as a z-score over its matrix. Every
    `refresh_steps` steps the share `selected_share` of each matrix with the largest difference is chosen; before the
    first choice every weight moves.
    """

    summary = "trains the weights that the task needs more than the base does"
    paper = "port to text of Huang et al. 2024, arXiv 2411.10928"
    space = {
        "learning_rate": Float(1e-6, 3e-3, default=2e-5, log=True),
        "selected_share": Float(0.05, 0.95, default=0.5),
        "refresh_steps": Integer(1, 1000, default=10, log=True, searched=False),
    }

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Let every parameter move, and remember the base's weights."""
        model = super().attach(model, setup)
        self._known = [weight.detach().clone() for weight in _weights(model)]
        return model

    def before_update(self, model: PreTrainedModel, step: int) -> None:
        """Add up absolute gradients, of what rests too."""
        for weight in _weights(model):
            if weight.grad is not None:
                state = self.state(weight)
                importance = state.get(IMPORTANCE, 0.0) + weight.grad.detach().abs()
                state[IMPORTANCE] = importance
        # After the sum: it sets the gradients of what rests to zero.
        super().before_update(model, step)

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """Choose anew after every period."""
        super().after_step(model, step)
        if step % self.setup.params.integer("refresh_steps") == 0:
            share = self.setup.params.number("selected_share")
            for weight, known in zip(_weights(model), self._known, strict=True):
                state = self.state(weight)
                if IMPORTANCE in state:
                    state[MOVES] = selected(known, state[IMPORTANCE], share)


def selected(weight: Tensor, importance: Tensor, share: float) -> Tensor:
    """Choose the entries of a matrix that the task needs more than the base does.

    Args:
        weight: The base's matrix, whose magnitudes are its importance to the base.
        importance: To the task, in the same shape.
        share: Of the entries to choose: those where the z-score of `importance` most exceeds that of the magnitude.

    Returns:
        1 where an entry is chosen and 0 elsewhere, in the same shape.
    """
    import torch

    score = _z(importance) - _z(weight.abs())
    chosen = score.flatten().topk(max(1, round(share * score.numel()))).indices
    return torch.zeros_like(score).view(-1).scatter(0, chosen, 1.0).view_as(score)


def _z(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-12)


def _weights(model: PreTrainedModel) -> list[Parameter]:
    return [model.get_submodule(name).weight for name in linear_layers(model, "all")]
