"""What methods share that train some of the base's own parameters, not all of them in every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._blocks import exactly
from harness.methods.base import Method
from harness.models.parts import PARTS

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


class PartialMethod(Method, ABC):
    """Lets parameters of the base rest in some steps.

    Between steps everything that may ever move is trainable, so that whoever looks at the model sees the whole; what
    rests is frozen for the step only. A resting parameter's moments and its count of steps stay as they were.
    """

    trains = r".*"
    covers = PARTS
    setup: StageSetup

    @abstractmethod
    def movable(self, model: PreTrainedModel, setup: StageSetup) -> Iterable[str]:
        """Names of the parameters that may move in any step."""

    @abstractmethod
    def resting(self, model: PreTrainedModel, step: int) -> set[str]:
        """Names of those that rest in a step, counting from 1."""

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Freeze what never moves."""
        self.setup = setup
        names = set(self.movable(model, setup))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        self.trains = exactly(sorted(names))
        return model

    def before_step(self, model: PreTrainedModel, step: int) -> None:
        """Freeze what rests."""
        resting = self.resting(model, step)
        for name, parameter in model.named_parameters():
            if name in resting:
                parameter.requires_grad_(False)
                # A gradient of the step before would be stepped again by AdamW.
                parameter.grad = None

    def after_step(self, model: PreTrainedModel, step: int) -> None:
        """Let it move again."""
        for name in self.resting(model, step):
            model.get_parameter(name).requires_grad_(True)

    def optimizer(self, model: PreTrainedModel, setup: StageSetup) -> Optimizer:
        """AdamW, which keeps the moments of what rests."""
        from harness.methods._optimizers import own_adamw

        return own_adamw(model, setup)
