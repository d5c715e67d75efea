"""MiCA: LoRA in the subspace of the weights' smallest singular values, where only one factor moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._residual import fitting_rank
from harness.methods.base import Options
from harness.methods.lora import Lora

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward


class Mica(Lora):
    """`B` is the weights' minor left singular vectors and stays; `A` starts at zero and moves."""

    summary = "LoRA on the weights' minor components; only A is trained"
    paper = "Rüdiger and Raschka 2026, arXiv 2604.01694"
    trains = r".*\.lora_A\.default\.weight"
    # Mapping PEFT's own layer takes one shape and one scale for all trials.
    same = tuple(name for name in Lora.space if name != "learning_rate")

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Factors from the exact decomposition."""
        return {"r": fitting_rank(model, setup), "init_lora_weights": "mica"}

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward | None:
        """PEFT's own layer, mapped: the frozen factor is no parameter of the stack."""
        return None
