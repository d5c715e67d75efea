"""OLoRA: LoRA that starts from a QR decomposition of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import Situation, StageSetup
from harness.methods._linear import TRANSPOSED
from harness.methods._residual import ResidualLora, fitting_rank
from harness.methods.base import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class OLora(ResidualLora):
    """Trains the first columns of `Q` and rows of `R`, so that one factor starts orthonormal."""

    summary = "LoRA that starts from a QR decomposition of the weights"
    paper = "Buyukakyuz 2024, arXiv 2406.01775"

    def skip(self, situation: Situation) -> str | None:
        """PEFT decomposes weights as they are kept."""
        # PEFT decomposes the weight as it is kept, and would swap the factors of a transposed one.
        refused = situation.model.model_type in TRANSPOSED
        return (
            f"PEFT's OLoRA takes no transposed linear layers, as those of a {situation.model.model_type} are"
            if refused
            else None
        )

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Factors from the decomposition."""
        return {"r": fitting_rank(model, setup), "init_lora_weights": "olora"}
