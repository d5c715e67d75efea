"""GLoRA: weights scaled and shifted by low-rank matrices, biases by further terms."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GLora(LayerMethod):
    """Makes `W + W * A + B` of the weights, and shifts what a layer gives by `W C + b D + E`."""

    summary = "low-rank scale and shift of weights, and trained biases"
    paper = "Chavan et al. 2023, arXiv 2306.07967"
    kind = "GloraConfig"
    trains = r".*\.glora_[A-E]\.default\.(X|Xd|Xu)"
    takes_transposed = False
    moves_biases = True
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=5e-4, log=True),
        "rank": Integer(1, 128, default=8, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Low-rank parts for weights and for the shift through them; numbers for biases."""
        return {"r": setup.params.integer("rank")}
