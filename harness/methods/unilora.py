"""Uni-LoRA: all low-rank factors of a model projected from one trained vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UniLora(LayerMethod):
    """Each entry of each factor is one of the vector's numbers, chosen at random in the same way in every trial."""

    summary = "all low-rank factors projected from one trained vector"
    paper = "Li et al. 2025, arXiv 2506.00799"
    kind = "UniLoraConfig"
    trains = r".*unilora_theta_d\.default"
    # PEFT draws the vector at random, so that the product of the factors is not zero.
    identity_at_start = False
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=5e-3, log=True),
        "rank": Integer(1, 64, default=4, log=True, searched=False),
        "vector_length": Integer(16, 100000, default=256, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank, and the vector's length."""
        return {"r": setup.params.integer("rank"), "theta_d_length": setup.params.integer("vector_length")}
