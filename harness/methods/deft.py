"""DEFT: takes a direction out of the weights and puts another into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Deft(LayerMethod):
    """Makes `W - P relu(P)^T W + P R` of the weights, with `R` such that nothing changes at the start."""

    summary = "replaces what the weights do in a trained low-rank subspace"
    paper = "Kumar et al. 2025, arXiv 2509.22793"
    kind = "DeftConfig"
    trains = r".*\.deft_[PR]\.default"
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=1e-4, log=True),
        "rank": Integer(1, 256, default=32, log=True),
        "projection": Choice(("relu", "qr"), default="relu", searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank and projection."""
        return {"r": setup.params.integer("rank"), "decomposition_method": setup.params.text("projection")}
