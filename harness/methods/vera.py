"""VeRA: two trained vectors between random projections that all layers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Vera(LayerMethod):
    """Adds `b B d A`, where `A` and `B` are drawn once (the same for every trial) and only the vectors `b` and `d` are trained."""

    summary = "trained vectors between random projections shared by all layers"
    paper = "Kopiczko et al. 2023, arXiv 2310.11454"
    kind = "VeraConfig"
    trains = r".*\.vera_lambda_[bd]\.default"
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=1e-3, log=True),
        "rank": Integer(4, 1024, default=256, log=True),
        "start_scale": Float(1e-3, 1.0, default=0.1, log=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """Rank, and where `d` starts."""
        return {"r": setup.params.integer("rank"), "d_initial": setup.params.number("start_scale")}
