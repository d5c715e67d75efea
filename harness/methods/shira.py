"""SHiRA: a small random part of the weights, trained as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod, sparse_unchecked
from harness.methods._residual import fitting_rank
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Shira(LayerMethod):
    """Trains as many weights as LoRA of that rank has parameters, at random places that are the same in every trial."""

    summary = "trains a sparse random part of the weights"
    paper = "Bhardwaj et al. 2024, arXiv 2406.13175"
    kind = "ShiraConfig"
    trains = r".*\.shira_weight\.default"
    # Its update is a sparse matrix, which torch.func.vmap cannot map.
    maps = False
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=3e-4, log=True),
        "rank": Integer(1, 256, default=32, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """How many weights, and the seed of PEFT's benchmark for their places."""
        return {"r": fitting_rank(model, setup, halved=True), "random_seed": 42}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model with PEFT, whose layers use sparse matrices."""
        sparse_unchecked()
        return super().attach(model, setup)
