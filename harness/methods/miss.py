"""MiSS: one small matrix per layer, repeated over groups of its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Miss(LayerMethod):
    """Sums the inputs in groups and multiplies the sums by one trained matrix that starts at zero."""

    summary = "one small matrix on grouped sums of a layer's inputs"
    paper = "Kang et al. 2024, arXiv 2409.15371"
    kind = "MissConfig"
    trains = r".*\.miss_block\.default"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=1e-4, log=True),
        "rank": Integer(1, 256, default=64, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The number of groups, which must divide the inputs."""
        widths = [inputs for inputs, _ in target_shapes(model, setup)]
        return {"r": divisor(setup.params.integer("rank"), widths, setup, "rank")}
