"""Super-tuning: the largest weights are trained, the others stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Choice, Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Supertuning(LayerMethod):
    """Trains the given share of each layer's weights, those of largest magnitude or of smallest.

    The paper weighs magnitudes by the layer's inputs, too, which PEFT does not.
    """

    summary = "trains the weights of largest or smallest magnitude"
    paper = "Ilin et al. 2026, arXiv 2607.09287"
    kind = "SupertuningConfig"
    trains = r".*\.supertuning_values\.default"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-5, 2e-2, default=3e-4, log=True),
        "trained_share": Float(1e-4, 0.5, default=0.01, log=True),
        "largest": Choice((True, False), default=True, searched=False),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The share, as its complement."""
        # PEFT counts what stays, not what trains.
        return {"sparsity": 1 - setup.params.number("trained_share"), "select_top": setup.params.flag("largest")}
