"""PiSSA: LoRA that starts from the weights' largest singular values and leaves the rest frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._residual import ResidualLora, fitting_rank
from harness.methods.base import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Pissa(ResidualLora):
    """Trains the principal part of each weight."""

    summary = "LoRA that trains the weights' principal singular values"
    paper = "Meng et al. 2024, arXiv 2404.02948"

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Factors from the exact decomposition."""
        # Not `pissa_niter`: adapters of the approximate decomposition reload wrong unless they are converted.
        return {"r": fitting_rank(model, setup), "init_lora_weights": "pissa"}
