"""HiRA: the weights times a low-rank matrix, entry by entry, which is an update of high rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float, Integer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Hira(LayerMethod):
    """Adds `W * (B A)`."""

    summary = "the weights times a low-rank matrix, entry by entry"
    paper = "Huang et al. 2025, openreview.net/pdf?id=TwJrTz9cRS; rate of PEFT's benchmark"
    kind = "HiraConfig"
    trains = r".*\.hira_[AB]\.default"
    space = {
        "learning_rate": Float(1e-4, 1e-1, default=4e-3, log=True),
        "rank": Integer(1, 256, default=32, log=True),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The rank of the factors."""
        return {"r": setup.params.integer("rank")}
