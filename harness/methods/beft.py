"""BEFT: trained biases on linear layers, also where the base has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod, unwarned
from harness.methods.base import Options
from harness.space import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Beft(LayerMethod):
    """Adds a trained vector to what each layer gives. A base without biases cannot hold them, so they stay beside it.

    The paper has them on the value projections alone; here they are on the layers of `target`.
    """

    summary = "trained biases beside the base, also where it has none"
    paper = "Huang et al. 2025, arXiv 2509.15974"
    limits = (
        "On the testbed's 1M model, 200 steps reached 28% of full tuning's gain: "
        "what it adds is the same for every token."
    )
    kind = "BeftConfig"
    trains = r".*\.beft_bias\.default"
    takes_transposed = False
    mergeable = False
    space = {"learning_rate": Float(1e-4, 1e-1, default=1e-3, log=True), "target": TARGET}

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """No further options: it has no rank."""
        return {}

    def attach(self, model: PreTrainedModel, setup: StageSetup) -> PreTrainedModel:
        """Wrap the model; PEFT warns that what has no bias cannot be merged."""
        # What PEFT warns of is declared here: without a bias in the base there is nothing to merge into.
        with unwarned("Detected that the base layer has no bias"):
            return super().attach(model, setup)
