"""OSF: full fine-tuning that leaves the weights' principal directions as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.axes.contract import StageSetup
from harness.methods._peft import TARGET, LayerMethod
from harness.methods.base import Options
from harness.space import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Osf(LayerMethod):
    """Trains the minor singular vectors and values of each weight; gradients are projected away from the kept ones."""

    summary = "trains only what is orthogonal to the weights' principal directions"
    paper = "Nayak et al. 2025, arXiv 2504.07097; rate of PEFT's benchmark"
    kind = "OSFConfig"
    trains = r".*osf_svd_params\.default\.(U|S|V)_low"
    alone = "PEFT projects its gradients where its parameters are"
    takes_transposed = False
    space = {
        "learning_rate": Float(1e-6, 3e-3, default=5e-5, log=True),
        "kept_share": Float(0.05, 0.95, default=0.5),
        "target": TARGET,
    }

    def options(self, model: PreTrainedModel, setup: StageSetup) -> Options:
        """The share of the singular directions that stay."""
        return {"effective_rank": setup.params.number("kept_share")}
