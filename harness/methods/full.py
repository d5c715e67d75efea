"""Full fine-tuning: every weight moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods.base import Method
from harness.models.parts import PARTS
from harness.space import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FullFineTuning(Method):
    """Trains every parameter of the base."""

    summary = "trains every weight of the model"
    paper = "Howard and Ruder 2018, arXiv 1801.06146; learning rate of Taori et al. 2023, Stanford Alpaca"
    trains = r".*"
    covers = PARTS
    alone = ""
    # Billions of parameters want 1e-6 to 1e-4, a million of them up to 3e-3.
    space = {"learning_rate": Float(1e-6, 3e-3, default=2e-5, log=True)}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Let every parameter move."""
        return model.requires_grad_(True)
