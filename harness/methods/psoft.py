"""PSOFT: a rotation inside the weights' principal subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods._residual import fitting_rank
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Psoft(LayerMethod):
    """Turns and stretches what passes through the weights' first `rank` singular directions."""

    summary = "rotates the weights inside their principal subspace"
    paper = "Wu et al. 2025, arXiv 2505.11235"
    kind = "PsoftConfig"
    trains = r".*\.psoft_R\.default\.(weight|vector_[ab])"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 5e-2, default=1e-4, log=True),
        "rank": Integer(2, 256, default=32, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The subspace, turned as far as the rotation says."""
        rank = fitting_rank(model, setup)
        # Scaled by alpha / rank, of which the rotation wants 1.
        return {"r": rank, "psoft_alpha": rank}
