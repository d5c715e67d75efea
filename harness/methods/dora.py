"""DoRA: LoRA on the direction of each weight column, with its magnitude learned apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import changes
from harness.methods._stacking import stacked_lora
from harness.methods.base import Options
from harness.methods.lora import Lora

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from harness.nn.stack import Dropout, StackedForward


class Dora(Lora):
    """Decomposes each weight into magnitude and direction; the direction gets the low-rank update."""

    summary = "LoRA on the weights' directions, magnitudes trained apart"
    paper = "Liu et al. 2024, arXiv 2402.09353"
    trains = r".*\.(lora_[AB]\.default\.weight|lora_magnitude_vector\.default\.weight)"

    def stacked(self, layers: Sequence[Module], dropout: Dropout) -> StackedForward:
        """Products of stacked matrices, then the magnitudes."""
        return stacked_lora(layers, dropout, dora=True)

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Weight decomposition on."""
        return {"use_dora": True}

    def deltas(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """Directions and magnitudes together."""
        # PEFT's `get_delta_weight` gives the low-rank part alone, without the magnitudes.
        return changes(self.layers(model), biases=False)
