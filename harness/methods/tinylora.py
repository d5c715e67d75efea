"""TinyLoRA: a handful of trained numbers per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods._residual import fitting_rank
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TinyLora(LayerMethod):
    """Mixes the weights' first singular directions by a fixed random projection of one short vector."""

    summary = "one short trained vector per layer between its singular directions"
    paper = "Morris et al. 2026, arXiv 2602.04118"
    limits = (
        "On the testbed's 1M model, 200 steps reached 0% of full tuning's gain: "
        "likely because it moves few fixed combinations of singular directions."
    )
    kind = "TinyLoraConfig"
    trains = r".*\.tinylora_v\.default\.\d+"
    space = {
        "learning_rate": Float(1e-4, 1.0, default=1e-2, log=True),
        "rank": Integer(1, 16, default=2, log=True, searched=False),
        "numbers": Integer(1, 1024, default=64, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank, and numbers per layer."""
        return {"r": fitting_rank(model, setup), "u": setup.params.integer("numbers")}
