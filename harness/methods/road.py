"""RoAd: pairs of a layer's outputs turned and stretched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._linear import divisor, target_shapes
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Choice, Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Road(LayerMethod):
    """Multiplies pairs of outputs by a trained angle and length."""

    summary = "rotates and scales pairs of a layer's outputs"
    paper = "Liao and Monz 2024, arXiv 2409.00119; rate of PEFT's benchmark"
    kind = "RoadConfig"
    trains = r".*\.road_(theta|alpha)\.default"
    takes_transposed = False
    moves_biases = True
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=1e-3, log=True),
        # one, two or four angles for each pair
        "variant": Choice(("road_1", "road_2", "road_4"), default="road_1"),
        "group": Integer(2, 512, default=64, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Groups that divide all outputs."""
        widths = [outputs for _, outputs in target_shapes(model, setup)]
        group = divisor(setup.params.integer("group"), widths, setup, "group")
        return {"variant": setup.params.text("variant"), "group_size": group}
