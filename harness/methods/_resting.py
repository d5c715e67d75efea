"""What methods share that train the whole base and let entries of its weights rest, chosen while training.

The choice is kept in the optimiser's state, so that a resumed trial has it.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Method
from harness.models.parts import PARTS

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from harness.methods._optimizers import State

MOVES = "moves"
"""Key of the optimiser's state: 1 where an entry of the parameter moves, 0 where it rests, broadcast to its shape."""


class RestingMethod(Method, ABC):
    """Gradients of what rests are zero before they are clipped, and what rests is put back after the step.

    Putting back matters: moments and weight decay would move what has no gradient.
    """

    trains = r".*"
    covers = PARTS
    setup: StageSetup
    _optimizer: Optimizer
    _kept: dict[Parameter, Tensor]

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Let every parameter move."""
        self.setup = setup
        return model.requires_grad_(True)

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW; it is looked into at every step."""
        import torch

        from harness.methods._optimizers import own_adamw

        self._optimizer = own_adamw(model, setup)
        for group in self._optimizer.param_groups:
            for p in group["params"]:  # AdamW's own start, which it leaves out where it finds anything else
                zeros = torch.zeros_like(p), torch.zeros_like(p)
                counted = torch.zeros((), device=p.device)
                self._optimizer.state[p] = {"step": counted, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
        return self._optimizer

    def state(self, parameter: Parameter) -> State:
        """What is kept of a parameter beside its moments."""
        state: State = self._optimizer.state[parameter]
        return state

    def resting(self, model: PreTrainedModel) -> Iterator[tuple[Parameter, Tensor]]:
        """Parameters of which entries rest, and which of their entries move."""
        for parameter in model.parameters():
            if parameter in self._optimizer.state and MOVES in self.state(parameter):
                yield parameter, self.state(parameter)[MOVES]

    def before_update(self, model: PreTrainedModel, step: int) -> None:
        """No gradient where an entry rests."""
        import torch

        with torch.no_grad():
            self._kept = {}
            for parameter, moves in self.resting(model):
                if parameter.grad is not None:
                    parameter.grad.mul_(moves)
                self._kept[parameter] = parameter.detach().clone()

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """What rests is where it was."""
        import torch

        with torch.no_grad():
            for parameter, moves in self.resting(model):
                if parameter in self._kept:
                    parameter.copy_(torch.where(moves.bool(), parameter, self._kept[parameter]))
        self._kept = {}
